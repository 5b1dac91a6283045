"""Red teaming in the report: what was tried on a policy, and what got through."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayward.cluster.records.red_teaming import FOUND, RedTeamingRound, RedTeamingSummary
from rayward.pipelines.report.drawing import Chart
from rayward.pipelines.report.plots import share_of, shares_chart
from rayward.pipelines.report.results import HeatMap, heat_map
from rayward.pipelines.report.words import label, sentence

_ROUND_COUNTS = {
    "seeds": "prompts to begin with",
    "from_round_before": "of them, through in the round before",
    "by_template": "rewrites by template",
    "by_attacker": "rewrites by the attacker model",
    "unfit": "left out: no template fits",
    "blank": "left out: the attacker model wrote nothing",
    "instruction_too_long": "left out: too long to ask the attacker model",
    "known": "left out: a prompt that is there already",
    "duplicates": "left out: rewritten so before",
    "too_long": "left out: too long",
    "asked": "prompts asked",
}
# Without an attacker model there is nothing to count.
_ATTACKER_COUNTS = ("by_attacker", "blank", "instruction_too_long")


@dataclass(frozen=True)
class RedTeamingReport:
    """Attacks on one policy."""

    stage: str
    policy: str
    found: RedTeamingSummary
    counts: tuple[tuple[str, tuple[int, ...]], ...]  # text, and a count for each round
    cells: HeatMap | None
    chart: Chart | None


def red_teaming_report(stage: str, policy: str, result: Mapping[str, Any]) -> RedTeamingReport:
    """A finished stage of red teaming against a policy."""
    found = RedTeamingSummary.model_validate(result[FOUND])
    title = "Violations per hundred answers"
    shares = [share_of(one.violations) for one in found.rounds]
    chart = None
    if any(shares):
        names = [f"round {one.round}" for one in found.rounds]
        chart = shares_chart(f"{stage}/rounds", title, names, {title: shares})
    return RedTeamingReport(
        stage=stage,
        policy=policy,
        found=found,
        counts=tuple(_counts(found.rounds)),
        cells=heat_map(f"{sentence(label(stage))}: answers that violate", found.cells)
        if found.cells
        else None,
        chart=chart,
    )


def _counts(rounds: tuple[RedTeamingRound, ...]) -> list[tuple[str, tuple[int, ...]]]:
    rows = []
    for name, text in _ROUND_COUNTS.items():
        counts = tuple(int(getattr(one, name)) for one in rounds)
        if name not in _ATTACKER_COUNTS or any(counts):
            rows.append((text, counts))
    rows.append(("answers", tuple(one.violations.total for one in rounds)))
    rows.append(("of them, violations", tuple(one.violations.count for one in rounds)))
    rows.append(("prompts that got through", tuple(one.kept for one in rounds)))
    return rows
