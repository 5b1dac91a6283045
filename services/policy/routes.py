"""The policy over HTTP, as OpenAI's clients speak to one.

What a request says is made complete and held to its limits here; vLLM's own layer in the replica
answers it. Serve cancels the request of a client that left, which ends the generation. (HAProxy 2.8
does not always notice before it has something to send; a stream always has.)
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from rayward.services.http.access import needs
from rayward.services.http.backends import Backends
from rayward.services.http.errors import ApiError, documented, unavailable
from rayward.services.policy.answers import (
    DONE,
    ChatAnswer,
    CompletionAnswer,
    chat_answer,
    chat_choice,
    chat_events,
    completion_answer,
    error_event,
)
from rayward.services.policy.guard import Guard, candidates_of, guard_of, guarded_choices
from rayward.services.policy.schemas import ChatRequest, CompletionRequest, Kind, refusal

_EVENTS = "text/event-stream"
_ERRORS = (400, 401, 403, 404, 413, 429, 503)
_ENDS = ("stop", "length")
# For these two Serve puts handlers of its own in place of an application's.
_FULL = (BackPressureError, DeploymentUnavailableError)


def policy_routes(backends: Backends) -> APIRouter:
    """Chat and text completions."""
    router = APIRouter(tags=["policy"])
    policy = backends.settings.policy
    assert policy is not None

    @router.post(
        "/v1/chat/completions",
        dependencies=[Depends(needs("generate"))],
        response_model=ChatAnswer,
        responses=_documented(ChatAnswer),
    )
    async def chat(body: ChatRequest) -> Response:
        """Answer a conversation."""
        body.require_served()
        guard = guard_of(backends, body)
        draws = body.choices * (candidates_of(guard, body) if guard else 1)
        require_room("n", draws, policy.max_choices)
        asked = body.for_engine(draws)
        if body.stream and guard is None:
            return await _streamed(backends, "chat", asked, body.with_usage)
        made = await _answered_chat(backends, body, guard, asked)
        if body.stream:
            return _all_at_once(chat_events(made, body.with_usage))
        return _json(made)

    @router.post(
        "/v1/completions",
        dependencies=[Depends(needs("generate"))],
        response_model=CompletionAnswer,
        responses=_documented(CompletionAnswer),
    )
    async def complete(body: CompletionRequest) -> Response:
        """Go on with a text. Not where answers are guarded: a text has no answer to score."""
        body.require_served()
        if policy.guard.is_on:
            raise ApiError(
                403, "answers are guarded here, which texts cannot be; use /v1/chat/completions"
            )
        require_room("n", body.choices * body.prompts, policy.max_choices)
        asked = body.for_engine(body.choices)
        if body.stream:
            return await _streamed(backends, "text", asked, body.with_usage)
        made = await _made(backends, "text", asked)
        return _json(completion_answer(made))

    return router


def require_room(field: str, draws: int, most: int) -> None:
    """Refuse to draw more answers for one request than may be.

    Raises:
        ApiError: 400.
    """
    if draws > most:
        raise refusal(field, f"this asks for {draws} answers in all, at most {most} are drawn")


async def _answered_chat(
    backends: Backends, body: ChatRequest, guard: Guard | None, asked: dict[str, Any]
) -> ChatAnswer:
    made = await _made(backends, "chat", asked)
    if guard is None:
        choices = [chat_choice(one, one["index"], None, "") for one in made["choices"]]
    else:
        choices = await guarded_choices(backends, guard, body, made["choices"])
    return chat_answer(made, choices)


async def _made(backends: Backends, kind: Kind, asked: dict[str, Any]) -> dict[str, Any]:
    """What vLLM makes of a request.

    Raises:
        ApiError: what vLLM says of it, or 503: it could not finish.
        TimeoutError: it took too long.
    """
    assert backends.policy is not None
    call = backends.policy.answer.remote(kind, asked)
    made: dict[str, Any] | None = None
    try:
        async with asyncio.timeout(backends.settings.http.generation_timeout_s):
            made = await call
    except _FULL as error:
        raise _away(backends, error) from error
    finally:
        if made is None:
            call.cancel()
    _require_no_error(backends, made)
    if any(choice["finish_reason"] not in _ENDS for choice in made["choices"]):
        raise unavailable("the engine gave an answer up", backends.settings.http.retry_after_s)
    return made


async def _streamed(
    backends: Backends, kind: Kind, asked: dict[str, Any], with_usage: bool
) -> StreamingResponse:
    """vLLM's events as they come, once the first of them is there.

    Raises:
        as `_made`.
    """
    options = {"stream_options": {"include_usage": with_usage}}
    events = _events(backends, kind, {**asked, **options})
    try:
        first = await anext(events)
    except _FULL as error:
        raise _away(backends, error) from error
    if not isinstance(first, str):
        _require_no_error(backends, first)
    return StreamingResponse(_followed(backends, first, events), media_type=_EVENTS)


async def _events(backends: Backends, kind: Kind, asked: dict[str, Any]) -> AsyncIterator[Any]:
    """What the replica streams. Who stops to listen, or waits too long, ends the generation."""
    assert backends.policy is not None
    call: Any = backends.policy.options(stream=True).stream.remote(kind, asked)
    until = asyncio.get_running_loop().time() + backends.settings.http.generation_timeout_s
    ended = False
    try:
        while not ended:
            async with asyncio.timeout_at(until):
                event = await anext(call, None)
            if event is None:
                ended = True
            else:
                yield event
    finally:
        if not ended:
            call.cancel()


async def _followed(
    backends: Backends, first: str, events: AsyncIterator[str]
) -> AsyncIterator[str]:
    """All events; what fails once the first is sent can only be told in another event."""
    yield first
    try:
        async for event in events:
            yield event
    except (TimeoutError, RayError, RayServeException) as error:
        yield error_event(_away(backends, error))
        yield DONE


def _away(backends: Backends, error: Exception) -> ApiError:
    reason = f"the policy is busy or restarting ({type(error).__name__})"
    return unavailable(reason, backends.settings.http.retry_after_s)


def _require_no_error(backends: Backends, made: dict[str, Any]) -> None:
    if "error" not in made:
        return
    error = made["error"]
    if error["status"] >= 500:
        raise unavailable("the engine cannot answer now", backends.settings.http.retry_after_s)
    raise ApiError(error["status"], error["message"], error["param"], "invalid_value")


def _all_at_once(events: Iterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type=_EVENTS)


def _json(answer: BaseModel) -> JSONResponse:
    return JSONResponse(answer.model_dump(mode="json"))


def _documented(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    return {200: {"model": answer, "content": {_EVENTS: {"schema": event}}}, **documented(*_ERRORS)}
