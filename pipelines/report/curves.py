"""The report's curves: metrics by step, in groups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayward.cluster.config.ppo import PPOSettings
from rayward.pipelines.report.charts import line_chart
from rayward.pipelines.report.drawing import Chart

Metrics = Sequence[Mapping[str, Any]]


def _always(ppo: PPOSettings) -> bool:
    return True


@dataclass(frozen=True)
class Panel:
    """One chart: its title with the unit, and its metrics by what they are called in it."""

    title: str
    series: Mapping[str, str]
    when: Callable[[PPOSettings], bool] = _always  # else the metric is absent, or says nothing
    bounds: tuple[float, float] | None = None
    noisy: bool = True  # so that a long curve is easier to read as a moving mean
    optional: bool = False  # nothing is amiss where it was not recorded


@dataclass(frozen=True)
class CurveGroup:
    """Charts that belong together, and the metrics that should be there and are not."""

    name: str
    charts: tuple[Chart, ...]
    missing: tuple[str, ...]


_SUPERVISED = (
    Panel("Loss", {"loss": "train/loss"}),
    Panel("Accuracy on the pairs of a step", {"share": "train/accuracy"}, optional=True),
    Panel("Learning rate", {"learning rate": "train/learning_rate"}, noisy=False),
)


def supervised_curves(stage: str, metrics: Metrics) -> CurveGroup:
    """The curves of a supervised stage, under the stage's name."""
    return draw_group(stage, stage, _SUPERVISED, metrics)


def draw_group(stage: str, name: str, panels: Sequence[Panel], metrics: Metrics) -> CurveGroup:
    """The curves of some panels from one stage's metrics."""
    charts, missing = [], []
    for panel in panels:
        series = {}
        for text, metric in panel.series.items():
            rows = [row for row in metrics if row["stage"] == stage and metric in row]
            if rows:
                series[text] = ([row["step"] for row in rows], [row[metric] for row in rows])
            elif not panel.optional:
                missing.append(metric)
        if series:
            key = f"{stage}/{panel.title}"
            charts.append(line_chart(key, panel.title, series, panel.bounds, panel.noisy))
    return CurveGroup(name, tuple(charts), tuple(missing))
