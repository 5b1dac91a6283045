"""TruthfulQA and ToxiGen in the report: the measured policies, and what others score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayward.cluster.records.benchmark_results import ToxigenResult, TruthfulQAResult
from rayward.cluster.records.rates import MeanScore
from rayward.pipelines.evaluation.published_scores import (
    REFERENCE_ROWS,
    ComparisonRow,
    comparison_rows,
)
from rayward.pipelines.report.results import ResultRow
from rayward.pipelines.report.words import after, label, percent

_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class BenchmarksReport:
    """Both benchmarks, on all policies that were measured on one of them."""

    policies: tuple[str, ...]
    comparison: tuple[ComparisonRow, ...]  # the policies, then the published models
    truthfulqa: tuple[ResultRow, ...]  # empty where no policy was measured on it
    toxigen: tuple[ResultRow, ...]


def benchmarks_report(measurements: Mapping[str, Mapping[str, Any]]) -> BenchmarksReport | None:
    """The benchmarks of all measured policies; None where none was measured on any."""
    truthfulqa = {
        policy: TruthfulQAResult.model_validate(found)
        for policy, result in measurements.items()
        if (found := result.get("truthfulqa")) is not None
    }
    toxigen = {
        policy: ToxigenResult.model_validate(found)
        for policy, result in measurements.items()
        if (found := result.get("toxigen")) is not None
    }
    policies = tuple(one for one in measurements if one in truthfulqa or one in toxigen)
    if not policies:
        return None
    measured = [
        comparison_rows(
            after(policy),
            truthfulqa[policy].truthful_and_informative if policy in truthfulqa else None,
            toxigen[policy].toxic if policy in toxigen else None,
        )[0]
        for policy in policies
    ]
    return BenchmarksReport(
        policies=policies,
        comparison=(*measured, *REFERENCE_ROWS),
        truthfulqa=_truthfulqa_rows([truthfulqa.get(one) for one in policies]),
        toxigen=_toxigen_rows([toxigen.get(one) for one in policies]),
    )


def _truthfulqa_rows(found: list[TruthfulQAResult | None]) -> tuple[ResultRow, ...]:
    if not any(found):
        return ()
    rates = {
        "truthful_and_informative": "truthful and informative",
        "truthful": "truthful",
        "informative": "informative",
        "mc1": "MC1: the likeliest choice is the true one",
    }
    return (
        *(_rates(text, name, found) for name, text in rates.items()),
        ResultRow("score", "MC2: probability of the true choices", tuple(map(_mc2, found))),
        *(
            _texts(text, name, found)
            for name, text in (
                ("left_out", "questions left out, too long"),
                ("truth_judge", "judge of truth"),
                ("info_judge", "judge of information"),
            )
        ),
    )


def _toxigen_rows(found: list[ToxigenResult | None]) -> tuple[ResultRow, ...]:
    if not any(found):
        return ()
    groups = dict.fromkeys(group for one in found if one for group in one.by_group)
    return (
        _rates("toxic", "toxic", found),
        *(
            ResultRow(
                "rate",
                f"about: {label(group)}",
                tuple(_NOT_MEASURED if one is None else one.by_group.get(group) for one in found),
            )
            for group in groups
        ),
        *(
            _texts(text, name, found)
            for name, text in (
                ("prompts", "prompts"),
                ("empty", "of them, nothing was said"),
                ("left_out", "prompts left out, too long"),
                ("judge", "judge"),
            )
        ),
    )


def _rates(text: str, name: str, found: list[Any]) -> ResultRow:
    cells = tuple(_NOT_MEASURED if one is None else getattr(one, name) for one in found)
    return ResultRow("rate", text, cells)


def _texts(text: str, name: str, found: list[Any]) -> ResultRow:
    """Counts and names. A judge that is None is nobody."""
    cells = (
        _NOT_MEASURED
        if one is None
        else "none"
        if (own := getattr(one, name)) is None
        else f"{own}"
        for one in found
    )
    return ResultRow("rate", text, tuple(cells))


def _mc2(found: TruthfulQAResult | None) -> MeanScore | str:
    if found is None:
        return _NOT_MEASURED
    if found.mc2 is None:
        return "no questions"
    if found.mc2_interval is None:
        return percent(found.mc2)
    low, high = found.mc2_interval
    return MeanScore(mean=found.mc2, low=low, high=high, total=found.questions)
