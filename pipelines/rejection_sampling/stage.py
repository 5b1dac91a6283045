"""Rejection sampling fine-tuning (Llama 2, section 3.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.rejection_sampling import RejectionSamplingSettings
from rayward.cluster.config.supervised import SupervisedSettings
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.types import AXES
from rayward.pipelines.stage import Asked, ReportSection, Stage

if TYPE_CHECKING:
    from rayward.cluster.config.recipe import Recipe
    from rayward.cluster.records.reading import RunReading
    from rayward.pipelines.run.context import RunContext


class RejectionSamplingStage(Stage):
    """Best of K answers by the reward mix, then a fit to them."""

    name = "rejection_sampling"
    label = "rejection sampling"
    Settings = RejectionSamplingSettings
    makes = "policy"
    reads = ("prompts/train",)
    needs = AXES
    gathers = ("rejection_sampling", "red_teaming")

    def fits(self, recipe: Recipe) -> dict[str, SupervisedSettings]:
        """The fit to the best answers."""
        return {f"{self.name}.fit": recipe.rejection_sampling.fit}

    def sampling(self, recipe: Recipe) -> SamplingSettings:
        """How answers are drawn."""
        return recipe.rejection_sampling.sampling

    def asked(self, context: RunContext) -> list[Asked]:
        """Training prompts."""
        return [Asked(self.name, self.sampling(context.recipe), context.data.prompts)]

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """The mix, and the best samples of earlier runs."""
        from rayward.cluster.records.best_samples import best_files
        from rayward.cluster.runs.manifest import file_digest

        return {
            "mix": recipe.ppo.mix.model_dump(mode="json"),
            "earlier": {
                given: [file_digest(file) for file in best_files(given)]
                for given in recipe.rejection_sampling.earlier
            },
        }

    def check(self, context: RunContext) -> None:
        """There are prompts, and the earlier best samples that the recipe names."""
        from rayward.cluster.records.best_samples import find_best

        context.data.require("prompts", len(context.data.prompts))
        for given in context.recipe.rejection_sampling.earlier:
            find_best(given)

    def run(self, context: RunContext, planned: PlannedStage) -> None:
        """Find the best answers, unless an earlier session did, and fit the policy to them."""
        import json
        from functools import partial

        from rayward.cluster.records.best_samples import read_best, unique_demonstrations
        from rayward.pipelines.rejection_sampling.sample import REPORT, sample_best
        from rayward.pipelines.supervised.policies import fit_policy

        directory = context.output(planned.id, partial(sample_best, context, planned))
        numbers: dict[str, Any] = json.loads((directory / REPORT).read_bytes())
        best = unique_demonstrations(one.demonstration for one in read_best(directory))
        ((section, _),) = self.fits(context.recipe).items()
        fit, seconds = context.recipe.rejection_sampling.fit, numbers["sampling_seconds"]
        fit_policy(context, planned, section, fit, best, [], numbers, seconds)

    def report(self, run: RunReading, planned: Sequence[PlannedStage]) -> ReportSection | None:
        """What was sampled, how good it was, and what was kept."""
        from rayward.pipelines.rejection_sampling.report import rejection_sampling_report

        return ReportSection(
            id="rejection-sampling",
            title="Rejection sampling",
            template="rejection_sampling/report.html.jinja",
            entries=tuple(
                rejection_sampling_report(one.id, run.stages[one.id])
                for one in run.finished(planned)
            ),
        )
