"""A run as its report reads it: the recipe, the plan, the stages' results and the metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.records.plan import PlannedStage, make_plan
from rayward.cluster.records.summary import finished_stages
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import read_metrics


@dataclass(frozen=True)
class RunReading:
    """What a run has left so far."""

    recipe: Recipe
    plan: Sequence[PlannedStage]
    stages: Mapping[str, Mapping[str, Any]]
    """The results of finished stages, by id, in the order of the plan."""
    metrics: Sequence[Mapping[str, Any]]
    """The lines of metrics.jsonl, each with its stage and step."""

    def finished(self, planned: Sequence[PlannedStage]) -> list[PlannedStage]:
        """Those that are finished."""
        return [one for one in planned if one.id in self.stages]

    def begun(self, planned: Sequence[PlannedStage]) -> list[PlannedStage]:
        """Those that are finished, or have left metrics before they were cut short."""
        left = {*self.stages, *(row["stage"] for row in self.metrics)}
        return [one for one in planned if one.id in left]


def read(run: RunDirectory) -> RunReading:
    """Read a run directory."""
    recipe = run.recipe()
    metrics = read_metrics(run.metrics_path)
    return RunReading(recipe, make_plan(recipe), finished_stages(run), metrics)
