"""PPO with two reward models (Llama 2, section 3.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.errors import InputError
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.stages import declared_stages
from rayward.cluster.types import AXES
from rayward.pipelines.stage import Asked, ReportSection, Stage

if TYPE_CHECKING:
    from rayward.cluster.config.recipe import Recipe
    from rayward.cluster.records.reading import RunReading
    from rayward.pipelines.run.capacity import Moment
    from rayward.pipelines.run.context import RunContext
    from rayward.pipelines.run.models import KnownModels


class PPOStage(Stage):
    """Reinforcement learning against both reward models, with rollout workers of its own."""

    name = "ppo"
    label = "PPO"
    Settings = PPOSettings
    makes = "policy"
    reads = ("prompts/train", "prompts/validation")
    needs = AXES
    gathers = ("red_teaming",)

    def asked(self, context: RunContext) -> list[Asked]:
        """Training prompts, and those of the early stop."""
        settings, data = context.recipe.ppo, context.data
        asked = [Asked(self.name, settings.sampling, data.prompts)]
        if settings.early_stop is not None:
            asked += [Asked(self.name, settings.sampling, data.validation_prompts)]
        return asked

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """The models that roles have of their own."""
        from rayward.pipelines.run.inputs import given_model

        ppo = recipe.ppo
        return {
            "policy": given_model(ppo.policy.path),
            "critic": given_model(ppo.critic.path),
            "reference": given_model(ppo.reference.path),
        }

    def capacity(self, recipe: Recipe) -> list[Moment]:
        """All roles at once."""
        from rayward.actors.requests import role_requests
        from rayward.pipelines.run.capacity import Gang, Moment

        return [Moment(self.name, [Gang(role_requests(recipe.ppo), recipe.ppo.colocate)])]

    def check_recipe(self, recipe: Recipe) -> None:
        """An adapter has no stage behind it."""
        lora = recipe.ppo.policy.lora
        if lora is None or lora.save_as != "adapter":
            return
        behind = recipe.stages[recipe.stages.index(self.name) + 1 :]
        starting = [one for one in behind if declared_stages()[one].makes != "measurements"]
        if starting:
            raise InputError(
                "ppo.policy.lora.save_as",
                lora.save_as,
                f"merged, because {starting[0]} starts from the whole model",
            )

    def check(self, context: RunContext) -> None:
        """There are prompts, and settings of roles that go together."""
        from rayward.pipelines.ppo.checks import check_settings

        check_settings(context)

    def check_models(self, context: RunContext, known: KnownModels) -> KnownModels:
        """Policy, reference and critic, where they have paths of their own."""
        from rayward.pipelines.ppo.checks import check_learners

        return check_learners(context, known)

    def run(self, context: RunContext, planned: PlannedStage) -> None:
        """Train, from the policy before it."""
        from rayward.pipelines.ppo.train import run_ppo

        run_ppo(context, planned)

    def report(self, run: RunReading, planned: Sequence[PlannedStage]) -> ReportSection | None:
        """Curves and times, also of a stage that was cut short."""
        from rayward.pipelines.ppo.report import kind_of_run, ppo_report

        ppo = run.recipe.ppo
        reports = tuple(
            ppo_report(one.id, run.metrics, ppo, run.stages.get(one.id))
            for one in run.begun(planned)
        )
        return ReportSection(
            id="ppo",
            title="PPO",
            template="ppo/report.html.jinja",
            entries=reports,
            told=kind_of_run(ppo),
            step_times=tuple(one for one in reports if one.time is not None),
        )
