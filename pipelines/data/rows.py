"""What every import format has in common: one row of a source, checked and made ours."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rayward.cluster.types import (
    AttackVector,
    Axis,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    Rating,
    RiskCategory,
)

Record = Mapping[str, object]

# The reason to leave out a pair that Llama 2, section 3.2.2, excludes.
CHOSEN_UNSAFE = "chosen_unsafe_rejected_safe"

_Item = TypeVar("_Item")


class RowSkipped(Exception):
    """A row of the source cannot be used.

    Args:
        reason: why, in snake case; the report counts rows by it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class ImportedRow:
    """A usable row: a prompt, and what came with it.

    A `demonstration` with `is_safety_demonstration` is a safe answer to an adversarial prompt.
    `unsafe_responses` are answers that the source calls unsafe: they are never shown as safe ones.
    `noted` names oddities that do not stand in the way of using the row, `columns_ignored` the
    columns of the source that nothing reads.
    """

    prompt: Prompt
    pairs: tuple[PreferencePair, ...] = ()
    demonstration: Demonstration | None = None
    is_safety_demonstration: bool = False
    unsafe_responses: tuple[str, ...] = ()
    noted: tuple[str, ...] = ()
    columns_ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchmarkRow(Generic[_Item]):
    """A usable row of a benchmark; `group` is what the report counts it under.

    `noted` and `columns_ignored` are as in `ImportedRow`.
    """

    item: _Item
    group: str
    noted: tuple[str, ...] = ()
    columns_ignored: tuple[str, ...] = ()


def make_prompt(
    messages: Sequence[Message],
    source: str,
    adversarial: bool,
    borderline: bool = False,
    risk_category: RiskCategory | None = None,
    attack_vector: AttackVector | None = None,
) -> Prompt:
    """A prompt whose id is a digest of its messages: the same conversation has one id anywhere.

    Raises:
        RowSkipped: the conversation is not one that a chat template takes.
    """
    _check_conversation(messages)
    if adversarial and borderline:
        raise RowSkipped("adversarial_and_borderline")
    return Prompt(
        id=digest_id([[turn.role, turn.content] for turn in messages]),
        messages=tuple(messages),
        risk_category=risk_category,
        attack_vector=attack_vector,
        adversarial=adversarial,
        borderline=borderline,
        source=source,
    )


def make_pair(
    prompt: Prompt,
    chosen: str,
    rejected: str,
    axis: Axis,
    rating: Rating | None = None,
    chosen_safe: bool | None = None,
    rejected_safe: bool | None = None,
) -> PreferencePair:
    """A pair that can be learned from.

    Raises:
        RowSkipped: an answer is empty, both are the same, or the chosen one is unsafe and the
            rejected one safe (excluded by Llama 2, section 3.2.2).
    """
    if not chosen.strip():
        raise RowSkipped("empty_chosen")
    if not rejected.strip():
        raise RowSkipped("empty_rejected")
    if chosen == rejected:
        raise RowSkipped("identical_answers")
    if chosen_safe is False and rejected_safe is True:
        raise RowSkipped(CHOSEN_UNSAFE)
    return PreferencePair(prompt, chosen, rejected, axis, rating, chosen_safe, rejected_safe)


def digest_id(content: object) -> str:
    """An id of 32 hexadecimal digits, the same for the same JSON content anywhere."""
    canonical = json.dumps(content, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def split_share(prompt: Prompt, seed: int) -> float:
    """Where the prompt falls in [0, 1), by a digest of its text and the seed.

    Case and white space do not count, so that near copies fall together.
    """
    text = "\x00".join(
        f"{turn.role}\x00{' '.join(turn.content.casefold().split())}" for turn in prompt.messages
    )
    digest = hashlib.sha256(f"{seed}\x00{text}".encode()).digest()
    # 53 bits: every value is exact as a float, and none rounds up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _check_conversation(messages: Sequence[Message]) -> None:
    if not messages:
        raise RowSkipped("no_messages")
    if any(not turn.content.strip() for turn in messages):
        raise RowSkipped("empty_turn")
    if messages[-1].role != "user":
        raise RowSkipped("last_turn_not_user")
    # An optional system turn, then user and assistant in turn: chat templates refuse the rest.
    turns = messages[1:] if messages[0].role == "system" else messages
    if any(turn.role != ("user", "assistant")[index % 2] for index, turn in enumerate(turns)):
        raise RowSkipped("roles_do_not_alternate")
