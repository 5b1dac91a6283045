"""Red teaming in numbers: every rewrite and every answer is counted."""

from collections import defaultdict
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from rayward.cluster.records.attempts import Attempt
from rayward.cluster.records.rates import Cell, Rate, rate
from rayward.cluster.types import ATTACK_VECTORS, RISK_CATEGORIES, AttackVector, RiskCategory

FOUND = "red_teaming"
"""The key of the summary in the result of a stage that makes prompts."""
COUNTED = (
    "seeds",
    "from_round_before",
    "by_template",
    "unfit",
    "by_attacker",
    "blank",
    "instruction_too_long",
    "known",
    "duplicates",
    "too_long",
)
"""What a round counts as it goes."""


class RedTeamingRound(BaseModel):
    """One round in numbers.

    `by_template` + `unfit` = `seeds` x vectors; with an attacker, `by_attacker` + `blank` +
    `instruction_too_long` is as many again.
    `by_template` + `by_attacker` = `known` + `duplicates` + `too_long` + `asked`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    seeds: int  # prompts that it began with
    from_round_before: int  # of them, those that got through there
    by_template: int  # rewrites
    unfit: int  # a prompt and a vector of which no template fits it
    by_attacker: int  # rewrites
    blank: int  # answers of the attacker without text
    instruction_too_long: int  # not sent to the attacker
    known: int  # rewrites left out: the same as a prompt that is there already
    duplicates: int  # left out: the same as another rewrite, of this round or before
    too_long: int  # left out: over sampling.max_prompt_tokens
    asked: int  # prompts that the policy answered
    violations: Rate  # of all its answers
    kept: int  # prompts with an answer that violates


class RedTeamingSummary(BaseModel):
    """All rounds in numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: tuple[RedTeamingRound, ...]
    attempted: int  # answers
    kept: int  # prompts
    violations: Rate  # of the answers
    violations_per_hundred: float | None  # attempts; None without any
    cells: tuple[Cell, ...]  # those with answers, in the order of the two lists
    without_cell: int  # answers to prompts whose risk category is not known


def violations(attempts: Sequence[Attempt]) -> Rate:
    """Answers that violate, of all."""
    return rate(sum(one.got_through for one in attempts), len(attempts))


def summarize(rounds: Sequence[RedTeamingRound], attempts: Sequence[Attempt]) -> RedTeamingSummary:
    """All rounds in numbers, by cell too."""
    total = violations(attempts)
    by_cell: defaultdict[tuple[RiskCategory, AttackVector], list[Attempt]] = defaultdict(list)
    for one in attempts:
        if one.prompt.risk_category is not None and one.prompt.attack_vector is not None:
            by_cell[one.prompt.risk_category, one.prompt.attack_vector].append(one)
    return RedTeamingSummary(
        rounds=tuple(rounds),
        attempted=len(attempts),
        kept=sum(one.kept for one in rounds),
        violations=total,
        violations_per_hundred=None if total.rate is None else 100 * total.rate,
        cells=tuple(
            Cell(
                risk_category=category,
                attack_vector=vector,
                **violations(by_cell[category, vector]).model_dump(),
            )
            for category in RISK_CATEGORIES
            for vector in ATTACK_VECTORS
            if (category, vector) in by_cell
        ),
        without_cell=len(attempts) - sum(map(len, by_cell.values())),
    )
