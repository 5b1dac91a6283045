"""What the policy answers over HTTP: OpenAI's forms, and beside each choice what the guard saw."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rayward.services.http.errors import ApiError, error_response

FinishReason = Literal["stop", "length", "content_filter"]

DONE = "data: [DONE]\n\n"
"""The last event of a stream."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Score(_Answer):
    """What one reward model says of an answer."""

    logit: float
    """Higher is better."""
    probability: Annotated[float, Field(ge=0, le=1)]
    """The logit's sigmoid."""


class GuardReport(_Answer):
    """How a guarded answer was chosen. The scores are those of the answer that the policy made."""

    safety: Score | None
    """Null where no safety model is served."""
    helpfulness: Score | None
    """Null where no helpfulness model is served."""
    reward: float | None
    """By the service's mix; null where it lacks a score."""
    decided_by: str | None
    """The reward model that decided, or `both`."""
    refused: bool
    """The choice is the refusal, because no answer reached the safety floor."""
    candidates: int
    """Answers that were drawn for this choice."""


class AnswerMessage(_Answer):
    """The assistant's turn."""

    role: Literal["assistant"]
    """Always `assistant`."""
    content: str
    """What it says, without control tokens."""


class TokenLogprob(_Answer):
    """A token that could have come."""

    token: str
    """Its text, as far as it has one."""
    logprob: float
    """In nats; -9999 stands for less than can be told."""
    bytes: list[int] | None
    """Its text in UTF-8."""


class ChosenLogprob(TokenLogprob):
    """The token that came."""

    top_logprobs: list[TokenLogprob]
    """Those that were most likely, as many as were asked for; the one that came may be besides."""


class ChatLogprobs(_Answer):
    """Log-probabilities of an answer."""

    content: list[ChosenLogprob] | None
    """By token."""


class ChatChoice(_Answer):
    """One answer."""

    index: int
    """Its place among the choices."""
    message: AnswerMessage
    """The turn."""
    logprobs: ChatLogprobs | None
    """Where they were asked for; null for a refusal."""
    finish_reason: FinishReason
    """`content_filter`: the refusal was given instead."""
    rayward: GuardReport | None
    """How it was chosen; null without a guard."""


class Usage(_Answer):
    """Tokens, also of answers that were drawn and not given."""

    prompt_tokens: int
    """Read."""
    completion_tokens: int
    """Made."""
    total_tokens: int
    """Both."""


class ChatAnswer(_Answer):
    """The answers to a conversation."""

    id: str
    """Of the request."""
    object: Literal["chat.completion"]
    """Always `chat.completion`."""
    created: int
    """Seconds since 1970."""
    model: str
    """`policy`."""
    choices: list[ChatChoice]
    """As many as were asked for."""
    usage: Usage
    """What it cost."""


class TextLogprobs(_Answer):
    """Log-probabilities of a text, each list by token."""

    tokens: list[str]
    """The tokens' texts."""
    token_logprobs: list[float | None]
    """Those of the tokens that came."""
    top_logprobs: list[dict[str, float] | None]
    """By a likely token's text; tokens of the same text share an entry."""
    text_offset: list[int]
    """Where each token begins in the text."""


class TextChoice(_Answer):
    """One text."""

    index: int
    """Prompts first, then choices: prompt i has the indices from i times n."""
    text: str
    """What follows the prompt."""
    logprobs: TextLogprobs | None
    """Where they were asked for."""
    finish_reason: FinishReason
    """Why it ends."""


class CompletionAnswer(_Answer):
    """The texts that follow."""

    id: str
    """Of the request."""
    object: Literal["text_completion"]
    """Always `text_completion`."""
    created: int
    """Seconds since 1970."""
    model: str
    """`policy`."""
    choices: list[TextChoice]
    """As many as were asked for, of each prompt."""
    usage: Usage
    """What it cost."""


def chat_answer(made: dict[str, Any], choices: list[ChatChoice]) -> ChatAnswer:
    """What vLLM made, with the choices that are given of it."""
    return ChatAnswer(
        object="chat.completion", choices=choices, usage=_usage(made), **_envelope(made)
    )


def completion_answer(made: dict[str, Any]) -> CompletionAnswer:
    """What vLLM made."""
    choices = [
        TextChoice(
            index=choice["index"],
            text=choice["text"],
            logprobs=choice["logprobs"],
            finish_reason=choice["finish_reason"],
        )
        for choice in made["choices"]
    ]
    return CompletionAnswer(
        object="text_completion", choices=choices, usage=_usage(made), **_envelope(made)
    )


def chat_choice(
    made: dict[str, Any], index: int, report: GuardReport | None, refusal: str
) -> ChatChoice:
    """One answer of vLLM's as a choice; the refusal in its place where the report says so."""
    refused = report is not None and report.refused
    return ChatChoice(
        index=index,
        message=AnswerMessage(
            role="assistant", content=refusal if refused else made["message"]["content"] or ""
        ),
        logprobs=None if refused else made["logprobs"],
        finish_reason="content_filter" if refused else made["finish_reason"],
        rayward=report,
    )


def chat_events(answer: ChatAnswer, with_usage: bool) -> Iterator[str]:
    """A whole answer as the server-sent events of a stream."""
    envelope = {**answer.model_dump(include={"id", "created", "model"})}
    envelope["object"] = "chat.completion.chunk"
    for choice in answer.choices:
        whole = choice.model_dump(mode="json")
        delta = whole.pop("message")
        yield _event(envelope, [{**whole, "delta": delta, "finish_reason": None}])
        end = {"index": choice.index, "delta": {}, "finish_reason": choice.finish_reason}
        yield _event(envelope, [end])
    if with_usage:
        yield _event({**envelope, "usage": answer.usage.model_dump()}, [])
    yield DONE


def error_event(error: ApiError) -> str:
    """An error as an event of a stream that has begun."""
    return f"data: {bytes(error_response(error).body).decode()}\n\n"


def _event(envelope: dict[str, Any], choices: list[dict[str, Any]]) -> str:
    return f"data: {json.dumps({**envelope, 'choices': choices}, ensure_ascii=False)}\n\n"


def _envelope(made: dict[str, Any]) -> dict[str, Any]:
    return {name: made[name] for name in ("id", "created", "model")}


def _usage(made: dict[str, Any]) -> Usage:
    usage = made["usage"]
    return Usage(**{name: usage[name] for name in Usage.model_fields})
