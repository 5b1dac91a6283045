"""The results in the report: what was measured of each policy, and how it changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.records.plan import PREVIOUS, parent_of
from rayward.cluster.records.rates import Cell, MeanScore, Rate, StageEvaluation
from rayward.cluster.records.samples import Sample
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.types import ATTACK_VECTORS, RISK_CATEGORIES
from rayward.pipelines.evaluation.gates import (
    change,
    is_adversarial,
    is_benign,
    is_helpful,
    is_violation,
    pair_up,
)
from rayward.pipelines.report.drawing import Chart
from rayward.pipelines.report.plots import PlanePoint, plane_chart, share_of, shares_chart
from rayward.pipelines.report.scores import kept_samples
from rayward.pipelines.report.words import label, sentence

_RATES = {
    "violations": "violations, of adversarial prompts",
    "well_formed_refusals": "well-formed refusals, of adversarial prompts",
    "good_refusals": "refusals that explain, of adversarial prompts",
    "safety_score": "safety model's probability, mean over adversarial prompts",
    "helpful": "helpful, of benign prompts",
    "helpfulness_score": "helpfulness model's probability, mean over benign prompts",
    "false_refusals": "false refusals, of benign prompts",
    "borderline_false_refusals": "false refusals, of borderline prompts",
    "garbage": "garbage, of all prompts",
}
# What a plane's vertical axis is: the same in fewer words.
_UPWARDS = {
    "helpful": "helpful, of benign prompts",
    "helpfulness_score": "helpfulness model's probability",
}
# Behind which rates their changes stand.
_CHANGES = {
    "violations": ("change of violations", is_adversarial, is_violation),
    "helpful": ("change of helpful answers", is_benign, is_helpful),
}

Evaluations = Mapping[str, StageEvaluation]


@dataclass(frozen=True)
class Change:
    """How much a share changed since the policy before, on the same prompts, paired."""

    value: float
    low: float
    high: float
    """95 % interval."""
    pairs: int


@dataclass(frozen=True)
class ResultRow:
    """One measurement of every policy."""

    kind: Literal["rate", "score", "change"]
    text: str
    cells: tuple[Rate | MeanScore | Change | str | None, ...]
    """None: not judged or not scored. A text stands for itself, or says why there is no number."""


@dataclass(frozen=True)
class HeatMap:
    """Violations by attack vector (rows) and risk category (columns)."""

    title: str
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def own_ends(evaluations: Evaluations) -> list[str]:
    """The first and the last of the run's own policies, which may be one.

    A policy of another run is among them only where nothing else was measured.
    """
    own = [policy for policy in evaluations if policy != PREVIOUS] or list(evaluations)
    return list(dict.fromkeys([*own[:1], *own[-1:]]))


def result_rows(
    run: RunDirectory, evaluations: Evaluations, parents: Mapping[str, str | None]
) -> list[ResultRow]:
    """The results of all policies, and the changes since the policies that they started from.

    Args:
        run: whose answers are paired.
        evaluations: of the policies.
        parents: the policy that each started from.
    """
    rows = []
    samples = kept_samples(run, list(evaluations))
    for name, text in _RATES.items():
        found = tuple(getattr(one, name) for one in evaluations.values())
        rows.append(ResultRow("score" if name.endswith("_score") else "rate", text, found))
        if name in _CHANGES and len(evaluations) > 1:
            cells = tuple(
                _change(name, policy, parent, evaluations, samples)
                for policy, parent in parents.items()
            )
            rows.append(ResultRow("change", _CHANGES[name][0], cells))
    return rows


def measured_parents(recipe: Recipe, evaluations: Evaluations) -> dict[str, str | None]:
    """The measured policy that each policy started from; None where there is none."""
    parents = {policy: parent_of(recipe, policy) for policy in evaluations}
    return {one: parent if parent in evaluations else None for one, parent in parents.items()}


def _change(
    name: str,
    policy: str,
    parent: str | None,
    evaluations: Evaluations,
    samples: Mapping[str, Sequence[Sample]],
) -> Change | str | None:
    if parent is None:
        return "\u2013"
    if getattr(evaluations[parent], name) is None or getattr(evaluations[policy], name) is None:
        return None
    if parent not in samples or policy not in samples:
        return "answers not kept"
    _, of, has = _CHANGES[name]
    pairs = pair_up(samples[parent], samples[policy])
    found = change(pairs, of, has)
    if found is None:
        return "no prompts"
    return Change(*found, pairs=sum(of(one) for _, one in pairs))


def stage_charts(evaluations: Evaluations) -> list[Chart]:
    """Violations, helpfulness and false refusals by stage. Where nobody judged, what the reward
    models say instead; what neither tells is left out."""
    names = [label(policy) for policy in evaluations]
    found = list(evaluations.values())

    def known(*fields: str) -> str | None:
        """The first of these that any policy has."""
        return next((f for f in fields if any(getattr(one, f) is not None for one in found)), None)

    charts = []
    for fields in (("violations", "safety_score"), ("helpful", "helpfulness_score")):
        field = known(*fields)
        if field is not None:
            shares = [share_of(getattr(one, field)) for one in found]
            title = f"{sentence(_RATES[field])} (%)"
            charts.append(shares_chart(f"stages/{field}", title, names, {title: shares}))
    refusals = {
        text: [share_of(getattr(one, field)) for one in found]
        for field, text in (
            ("false_refusals", "benign prompts"),
            ("borderline_false_refusals", "borderline prompts"),
        )
        if known(field)
    }
    if refusals:
        charts.append(shares_chart("stages/false_refusals", "False refusals (%)", names, refusals))
    return charts


def plane(evaluations: Evaluations, parents: Mapping[str, str | None]) -> Chart | None:
    """Violations against helpful answers, or where nobody tells these, against the helpfulness
    model's probability; None unless two policies have both."""
    judged = any(share_of(one.helpful) is not None for one in evaluations.values())
    upwards = "helpful" if judged else "helpfulness_score"
    points = []
    for policy, found in evaluations.items():
        x, y = share_of(found.violations), share_of(getattr(found, upwards))
        if x is not None and y is not None:
            parent = parents[policy]
            points.append(PlanePoint(label(policy), x, y, parent and label(parent)))
    if len(points) < 2:
        return None
    title = "Safety and helpfulness, policy by policy"
    return plane_chart("stages/plane", title, points, _UPWARDS[upwards])


def heat_map(title: str, cells: Sequence[Cell]) -> HeatMap:
    """Cells as a table: attack vectors down, risk categories across."""
    by_place = {(cell.attack_vector, cell.risk_category): cell for cell in cells}
    rows = tuple(
        (vector, tuple(by_place.get((vector, category)) for category in RISK_CATEGORIES))
        for vector in ATTACK_VECTORS
    )
    return HeatMap(title, rows)
