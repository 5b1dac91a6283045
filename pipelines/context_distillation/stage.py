"""Targeted safety context distillation (Llama 2, section 4.2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rayward.cluster.config.context_distillation import ContextDistillationSettings
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.supervised import SupervisedSettings
from rayward.cluster.errors import InputError
from rayward.cluster.records.plan import PlannedStage
from rayward.pipelines.stage import Asked, ReportSection, Stage

if TYPE_CHECKING:
    from rayward.cluster.config.recipe import Recipe
    from rayward.cluster.records.reading import RunReading
    from rayward.pipelines.context_distillation.preprompts import Preprompts
    from rayward.pipelines.run.context import RunContext
    from rayward.pipelines.run.models import KnownModels


class ContextDistillationStage(Stage):
    """Answer adversarial prompts after a safety preprompt, keep what the safety model finds safer,
    and learn it without the preprompt."""

    name = "context_distillation"
    label = "context distillation"
    Settings = ContextDistillationSettings
    makes = "policy"
    reads = ("prompts/", "demonstrations/")
    needs = ("safety",)
    gathers = ("red_teaming",)
    last = True

    def fits(self, recipe: Recipe) -> dict[str, SupervisedSettings]:
        """The fit to the kept answers."""
        return {f"{self.name}.fit": recipe.context_distillation.fit}

    def sampling(self, recipe: Recipe) -> SamplingSettings:
        """How answers are drawn, with and without a preprompt."""
        return recipe.context_distillation.sampling

    def asked(self, context: RunContext) -> list[Asked]:
        """Adversarial training prompts."""
        return [Asked(self.name, self.sampling(context.recipe), context.data.adversarial)]

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """The preprompts."""
        from rayward.pipelines.run.inputs import given_file

        return {"preprompts": given_file(recipe.context_distillation.preprompts)}

    def check(self, context: RunContext) -> None:
        """There are adversarial prompts, benign answers to replay, and preprompts enough."""
        settings = context.recipe.context_distillation
        context.data.require("adversarial prompts", len(context.data.adversarial))
        context.data.require_replay(self.name, settings.benign_replay)
        self._preprompts(context).require(settings.preprompts_per_prompt)

    def check_models(self, context: RunContext, known: KnownModels) -> KnownModels:
        """A preprompt is a system message, which some chat templates refuse."""
        from rayward.actors.text.chat import encode_prompt
        from rayward.pipelines.context_distillation.preprompts import with_preprompt
        from rayward.pipelines.run.models import one_of_each

        preprompts = self._preprompts(context)
        (preprompt, *_) = [*preprompts.generic, *preprompts.by_adjectives]
        if known.tokenizer is None:
            return known
        for prompt in one_of_each(context.data.adversarial):
            try:
                encode_prompt(known.tokenizer, with_preprompt(prompt, preprompt).messages)
            except InputError as error:
                expected = f"a chat template that takes a system message ({error.expected})"
                raise InputError(known.field, known.path, expected) from error
        return known

    def run(self, context: RunContext, planned: PlannedStage) -> None:
        """Find safer answers, unless an earlier session did, and fit the policy to them.

        Where none is safer the originals stay, and so does the policy.
        """
        import json
        from functools import partial

        from rayward.cluster.progress import announce
        from rayward.cluster.records.distilled import read_distilled
        from rayward.pipelines.context_distillation.sample import REPORT, sample_distilled
        from rayward.pipelines.supervised.policies import fit_policy, keep_policy, replay

        settings = context.recipe.context_distillation
        directory = context.output(planned.id, partial(sample_distilled, context, planned))
        numbers: dict[str, Any] = json.loads((directory / REPORT).read_bytes())
        seconds = numbers["sampling_seconds"]
        kept = [one.demonstration for one in read_distilled(directory) if one.kept]
        if not kept:
            announce(f"{planned.id}: nothing to learn; the policy stays as it is")
            keep_policy(context, planned, numbers | {"benign_replayed": 0}, seconds)
            return
        benign = replay(context, planned, round(settings.benign_replay * len(kept)))
        numbers |= {"benign_replayed": len(benign)}
        ((section, _),) = self.fits(context.recipe).items()
        shown = [*kept, *benign]
        fit_policy(context, planned, section, settings.fit, shown, [], numbers, seconds)

    def report(self, run: RunReading, planned: Sequence[PlannedStage]) -> ReportSection | None:
        """Which answers were kept, and how much safer they are."""
        from rayward.pipelines.context_distillation.report import context_distillation_report

        return ReportSection(
            id="context-distillation",
            title="Context distillation",
            template="context_distillation/report.html.jinja",
            entries=tuple(
                context_distillation_report(one.id, run.stages[one.id])
                for one in run.finished(planned)
            ),
        )

    def _preprompts(self, context: RunContext) -> Preprompts:
        from rayward.pipelines.context_distillation.preprompts import load_preprompts

        settings = context.recipe.context_distillation
        return load_preprompts(settings.preprompts, context.data.oracle is not None)
