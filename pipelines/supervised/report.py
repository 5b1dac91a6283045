"""Reward models in the report: how often they are right, and how well they know it."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rayward.cluster.records.rates import Rate
from rayward.cluster.records.reward_models import (
    RewardModelEvaluation,
    SafetyCalibration,
    ScoreHistogram,
)
from rayward.pipelines.report.charts import calibration_chart, histogram_chart
from rayward.pipelines.report.drawing import Chart
from rayward.pipelines.report.words import label, number


@dataclass(frozen=True)
class RewardModelReport:
    """A reward model on held-out pairs."""

    stage: str
    found: RewardModelEvaluation
    groups: tuple[tuple[str, Mapping[str, Rate]], ...]  # title and rates; without empty ones
    calibration: SafetyCalibration | None  # None where no answer has a safety label
    charts: tuple[Chart, ...]


def reward_model_report(stage: str, name: str, result: Mapping[str, Any]) -> RewardModelReport:
    """A reward model that a stage trained and measured.

    Args:
        stage: its id.
        name: the stage's label.
        result: of the stage.
    """
    found = RewardModelEvaluation.model_validate(result["evaluation"])
    labelled = result.get("safety_calibration")
    calibration = None if labelled is None else SafetyCalibration.model_validate(labelled)
    groups: dict[str, Mapping[str, Rate]] = {
        "by rating": found.by_rating,
        "by safety of the answers": found.by_safety,
        "by risk category": found.by_category,
    }
    if found.unsafe_recall.total:
        groups["answers labelled unsafe"] = {"score below 0": found.unsafe_recall}
    return RewardModelReport(
        stage,
        found,
        tuple((title, rates) for title, rates in groups.items() if rates),
        calibration,
        _charts(stage, name, found, calibration),
    )


def _charts(
    stage: str, name: str, found: RewardModelEvaluation, safety: SafetyCalibration | None
) -> tuple[Chart, ...]:
    # Behind the axis stands the round, from the second on.
    later = label(stage).removeprefix(name)
    histogram, model = found.histogram, f"{found.axis.capitalize()} model{later}"
    ranking = [(part.predicted, part.observed) for part in found.calibration]
    charts = [
        histogram_chart(
            f"{stage}/histogram",
            f"{model}: scores of held-out pairs",
            histogram.edges,
            {"chosen": histogram.chosen, "rejected": histogram.rejected},
            filled="chosen",
            unit="answers",
            told=_means(histogram),
        ),
        calibration_chart(
            f"{stage}/ranking",
            f"{model}: probability of being preferred",
            ranking,
            0.5,
        ),
    ]
    if safety is not None:
        labelled = [(part.predicted, part.safe) for part in safety.bins]
        title = f"{model}: probability of being safe"
        charts.append(calibration_chart(f"{stage}/safety", title, labelled, 0.0))
    return tuple(charts)


def _means(histogram: ScoreHistogram) -> str:
    centres = [(low + high) / 2 for low, high in pairwise(histogram.edges)]
    means = {
        name: sum(at * count for at, count in zip(centres, counts, strict=True))
        / max(1, sum(counts))
        for name, counts in (("chosen", histogram.chosen), ("rejected", histogram.rejected))
    }
    return ", ".join(f"{name} mean {number(mean)}" for name, mean in means.items())
