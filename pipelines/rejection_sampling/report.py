"""Rejection sampling in the report: what was sampled, and how good it was."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayward.cluster.records.rejection_sampling import RewardCurve, TemperatureTrial
from rayward.pipelines.report.charts import line_chart
from rayward.pipelines.report.drawing import Chart
from rayward.pipelines.report.words import sentence


@dataclass(frozen=True)
class RejectionSamplingReport:
    """Best of K: what was sampled, how good it was, and what was kept."""

    stage: str
    result: Mapping[str, Any]
    trials: tuple[TemperatureTrial, ...]  # empty where no temperature was searched
    charts: tuple[Chart, ...]


def rejection_sampling_report(stage: str, result: Mapping[str, Any]) -> RejectionSamplingReport:
    """A finished stage of rejection sampling."""
    curves = {kind: RewardCurve.model_validate(own) for kind, own in result["curves"].items()}
    return RejectionSamplingReport(
        stage=stage,
        result=result,
        trials=tuple(
            TemperatureTrial.model_validate(trial) for trial in result["temperature_search"]
        ),
        charts=tuple(_reward_curve(stage, kind, curve) for kind, curve in curves.items()),
    )


def _reward_curve(stage: str, kind: str, curve: RewardCurve) -> Chart:
    numbers = list(range(1, len(curve.max) + 1))
    return line_chart(
        f"{stage}/{kind}",
        f"{sentence(kind)} prompts, {curve.prompts}: reward (logit)",
        {"best": (numbers, curve.max), "median": (numbers, curve.median)},
        bounds=None,
        noisy=False,
        along="K",
    )
