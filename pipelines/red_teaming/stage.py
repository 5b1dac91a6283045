"""Red teaming: the search for prompts that get through (Llama 2, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.red_teaming import RedTeamingSettings
from rayward.cluster.records.plan import PlannedStage
from rayward.pipelines.stage import Asked, ReportSection, Stage

if TYPE_CHECKING:
    from rayward.cluster.config.recipe import Recipe
    from rayward.cluster.records.reading import RunReading
    from rayward.pipelines.run.capacity import Moment
    from rayward.pipelines.run.context import RunContext
    from rayward.pipelines.run.models import KnownModels


class RedTeamingStage(Stage):
    """Rewrite prompts by attack vectors, have the policy answer, keep what gets through."""

    name = "red_teaming"
    label = "red teaming"
    Settings = RedTeamingSettings
    makes = "prompts"
    reads = ("prompts/",)
    needs = ("safety",)
    gathers = ("red_teaming",)

    def sampling(self, recipe: Recipe) -> SamplingSettings:
        """How answers are drawn."""
        return recipe.red_teaming.sampling

    def asked(self, context: RunContext) -> list[Asked]:
        """The prompts that are rewritten; how long rewrites are is not known yet."""
        seeds = context.data.seed_prompts or context.data.adversarial
        return [Asked(self.name, self.sampling(context.recipe), seeds)]

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """The templates of rewrites, and the attacker model."""
        from rayward.pipelines.run.inputs import given_file, given_model

        attacker = recipe.red_teaming.attacker
        return {
            "templates": given_file(recipe.red_teaming.templates),
            "attacker": given_model(None if attacker is None else attacker.path),
        }

    def capacity(self, recipe: Recipe) -> list[Moment]:
        """The sampler, and the attacker beside it."""
        from rayward.actors.requests import attacker_requests
        from rayward.pipelines.run.capacity import Gang, sampler_moment

        attacker = recipe.red_teaming.attacker
        others = [] if attacker is None else [Gang(attacker_requests(attacker))]
        return [sampler_moment(self.name, recipe, others)]

    def check(self, context: RunContext) -> None:
        """There are prompts to rewrite, and a template for each vector."""
        from rayward.pipelines.red_teaming.templates import load_attack_templates
        from rayward.pipelines.run.capacity import require_whole_engines

        data, settings = context.data, context.recipe.red_teaming
        seeds = len(data.seed_prompts) or len(data.adversarial)
        data.require("seed prompts or adversarial prompts", seeds)
        has_attacker = settings.attacker is not None
        load_attack_templates(
            settings.templates, data.oracle is not None, settings.vectors, has_attacker
        )
        if settings.attacker is not None:
            require_whole_engines(settings.attacker.rollout, "red_teaming.attacker.rollout")

    def check_models(self, context: RunContext, known: KnownModels) -> KnownModels:
        """The attacker is a language model that chats."""
        from rayward.actors.models.kinds import positions
        from rayward.pipelines.run.models import causal_lm, require_room

        attacker = context.recipe.red_teaming.attacker
        if attacker is not None:
            config, _ = causal_lm(attacker.path, "red_teaming.attacker.path")
            section = "red_teaming.attacker"
            require_room(attacker.sampling, section, positions(config), "the attacker's")
        return known

    def run(self, context: RunContext, planned: PlannedStage) -> None:
        """Attack, unless an earlier session did."""
        import json
        from functools import partial

        from rayward.pipelines.red_teaming.attack import REPORT, attack

        directory = context.output(planned.id, partial(attack, context, planned))
        numbers: dict[str, Any] = json.loads((directory / REPORT).read_bytes())
        context.complete(planned.id, numbers)

    def report(self, run: RunReading, planned: Sequence[PlannedStage]) -> ReportSection | None:
        """What was tried, and what got through."""
        from rayward.pipelines.red_teaming.report import red_teaming_report

        return ReportSection(
            id="red-teaming",
            title="Red teaming",
            template="red_teaming/report.html.jinja",
            entries=tuple(
                red_teaming_report(one.id, one.policy, run.stages[one.id])
                for one in run.finished(planned)
            ),
        )
