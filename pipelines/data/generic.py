"""Rows of preference, demonstration and prompt files in the formats that TRL reads.

A row is, by the columns that are not null:

- a preference pair: `chosen` and `rejected`, with `prompt` or `messages` for the conversation, or
  without, where both are whole conversations that part at the last turn;
- a demonstration: `response` or `completion` with `prompt` or `messages`, or `messages` alone,
  of which the last is the assistant's;
- a prompt: `prompt` or `messages` alone, of which the last is the user's.

A prompt is a text or a list of messages (`role`, `content`), and so is each answer. Our own tables
(cluster/records/tables.py) are rows of this kind too; their ids are made anew from the messages.
"""

from pydantic import BaseModel, ConfigDict, ValidationError

from rayward.cluster.errors import InputError
from rayward.cluster.types import (
    AttackVector,
    Axis,
    Demonstration,
    Message,
    MessageRole,
    Rating,
    RiskCategory,
)
from rayward.pipelines.data.rows import ImportedRow, Record, RowSkipped, make_pair, make_prompt


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: MessageRole
    content: str


_Text = str | list[_Turn]


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: _Text | None = None
    messages: list[_Turn] | None = None
    chosen: _Text | None = None
    rejected: _Text | None = None
    response: _Text | None = None
    completion: _Text | None = None
    axis: Axis | None = None
    rating: Rating | None = None
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None
    risk_category: RiskCategory | None = None
    attack_vector: AttackVector | None = None
    adversarial: bool | None = None
    borderline: bool | None = None
    source: str | None = None


def generic_row(
    record: Record, axis: Axis | None, source: str, safety_demonstrations: bool = False
) -> ImportedRow:
    """The prompt, and the pair or the demonstration, of one row.

    `axis` is what the user asked for; pairs of the other axis are skipped. A prompt without the
    column `adversarial` is tagged adversarial on the safety axis, as in hh-rlhf; where no axis is
    known either it is not tagged, and noted. A pair's chosen answer is a demonstration too,
    unless it is known to be unsafe. The column `source` stands before the argument. With
    `safety_demonstrations` the user says that this source's demonstrations are safe answers: those
    on adversarial prompts are safety demonstrations.

    Raises:
        RowSkipped: with the first reason that holds, in the order of the code.
        InputError: a pair has no axis and the user named none.
    """
    row = _parse(record)
    known_axis = row.axis or axis
    is_pair = row.chosen is not None or row.rejected is not None
    if is_pair and known_axis is None:
        raise InputError(
            "--axis",
            None,
            f"safety or helpfulness, because {source} has a preference pair without `axis`",
        )
    if is_pair and axis is not None and known_axis != axis:
        raise RowSkipped("other_axis")
    context, answer, rejected = _pair_parts(row) if is_pair else (*_answered(row), None)
    prompt = make_prompt(
        context,
        row.source or source,
        adversarial=known_axis == "safety" if row.adversarial is None else row.adversarial,
        borderline=bool(row.borderline),
        risk_category=row.risk_category,
        attack_vector=row.attack_vector,
    )
    pair = demonstration = None
    noted = ["adversarial_not_given"] if row.adversarial is None and known_axis is None else []
    if known_axis is not None and answer is not None and rejected is not None:
        pair = make_pair(
            prompt, answer, rejected, known_axis, row.rating, row.chosen_safe, row.rejected_safe
        )
        if row.chosen_safe is False:
            noted.append("unsafe_chosen_not_demonstrated")
    if answer is not None and not answer.strip():
        raise RowSkipped("empty_response")
    if answer is not None and row.chosen_safe is not False:
        demonstration = Demonstration(prompt, answer)
    ignored = [name for name in record if name not in _Row.model_fields]
    if row.prompt is not None and row.messages is not None:
        ignored.append("messages")
    return ImportedRow(
        prompt=prompt,
        pairs=() if pair is None else (pair,),
        demonstration=demonstration,
        is_safety_demonstration=safety_demonstrations and prompt.adversarial,
        noted=tuple(noted),
        columns_ignored=tuple(ignored),
    )


def _parse(record: Record) -> _Row:
    try:
        return _Row.model_validate(record)
    except ValidationError as error:
        raise RowSkipped(f"invalid_{error.errors()[0]['loc'][0]}") from None


def _pair_parts(row: _Row) -> tuple[list[Message], str, str]:
    """The conversation, the chosen and the rejected answer."""
    if row.chosen is None:
        raise RowSkipped("missing_chosen")
    if row.rejected is None:
        raise RowSkipped("missing_rejected")
    context = _conversation(row)
    if context is None:
        if isinstance(row.chosen, str) or isinstance(row.rejected, str):
            raise RowSkipped("missing_prompt")
        context = _messages(row.chosen)[:-1]
        if context != _messages(row.rejected)[:-1]:
            raise RowSkipped("contexts_differ")
    return context, _answer(context, row.chosen), _answer(context, row.rejected)


def _answered(row: _Row) -> tuple[list[Message], str | None]:
    """The conversation and its answer; None where it is a prompt alone."""
    context = _conversation(row)
    if context is None:
        raise RowSkipped("missing_prompt")
    if row.response is not None and row.completion is not None:
        raise RowSkipped("response_and_completion")
    answer = row.completion if row.response is None else row.response
    if answer is not None:
        return context, _answer(context, answer)
    if context and context[-1].role == "assistant":
        return context[:-1], context[-1].content
    return context, None


def _conversation(row: _Row) -> list[Message] | None:
    """What `prompt` or else `messages` holds; some data sets repeat one in the other."""
    given = row.messages if row.prompt is None else row.prompt
    return None if given is None else _messages(given)


def _messages(text: _Text) -> list[Message]:
    if isinstance(text, str):
        return [Message("user", text)]
    return [Message(turn.role, turn.content) for turn in text]


def _answer(context: list[Message], answer: _Text) -> str:
    """The answer's text; a list may repeat the conversation before it."""
    if isinstance(answer, str):
        return answer
    turns = _messages(answer)
    if context and turns[: len(context)] == context:
        turns = turns[len(context) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise RowSkipped("answer_not_one_assistant_turn")
    return turns[0].content
