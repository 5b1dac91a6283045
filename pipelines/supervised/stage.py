"""The supervised stages: SFT, safety SFT, and the two reward models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rayward.cluster.config.supervised import (
    RewardTrainingSettings,
    SafetyRewardSettings,
    SafetySFTSettings,
    SFTSettings,
    SupervisedSettings,
)
from rayward.cluster.records.plan import PlannedStage
from rayward.pipelines.stage import ReportSection, Stage

if TYPE_CHECKING:
    from rayward.cluster.config.recipe import Recipe
    from rayward.cluster.records.reading import RunReading
    from rayward.pipelines.run.context import RunContext


class SFTStage(Stage):
    """Supervised fine-tuning, from the second round on with the best samples gathered so far
    (Llama 2, section 3.1)."""

    name = "sft"
    label = "SFT"
    Settings = SFTSettings
    makes = "policy"
    reads = ("demonstrations/",)
    gathers = ("rejection_sampling",)
    starts_from_base = True

    def fits(self, recipe: Recipe) -> dict[str, SupervisedSettings]:
        """Its one fit."""
        return {self.name: recipe.sft}

    def check(self, context: RunContext) -> None:
        """There is something to imitate."""
        context.data.require("demonstrations", len(context.data.demonstrations))

    def run(self, context: RunContext, planned: PlannedStage) -> None:
        """Fit the start model to the demonstrations."""
        from rayward.cluster.records.best_samples import read_best, unique_demonstrations
        from rayward.pipelines.supervised.policies import fit_policy

        gathered = [
            row.demonstration
            for earlier in planned.gathered
            for row in read_best(context.run.output_dir(earlier))
        ]
        data = context.data
        shown = unique_demonstrations([*data.demonstrations, *gathered])
        numbers = {"demonstrations": len(data.demonstrations), "gathered": len(gathered)}
        held_out = data.held_out_demonstrations
        settings = context.recipe.sft
        fit_policy(context, planned, self.name, settings, shown, held_out, numbers)


class SafetySFTStage(Stage):
    """Supervised safety fine-tuning: safe answers to adversarial prompts among benign ones
    (Llama 2, section 4.2.2)."""

    name = "safety_sft"
    label = "safety SFT"
    Settings = SafetySFTSettings
    makes = "policy"
    reads = ("safety_demonstrations/", "demonstrations/")

    def fits(self, recipe: Recipe) -> dict[str, SupervisedSettings]:
        """Its one fit."""
        return {self.name: recipe.safety_sft}

    def check(self, context: RunContext) -> None:
        """There are safe answers, and benign ones to replay."""
        data = context.data
        data.require("safety_demonstrations", len(data.safety_demonstrations))
        data.require_replay(self.name, context.recipe.safety_sft.benign_replay)

    def run(self, context: RunContext, planned: PlannedStage) -> None:
        """Fit the policy to safe answers, with benign ones replayed."""
        from rayward.pipelines.supervised.policies import fit_policy, replay

        settings, safe = context.recipe.safety_sft, context.data.safety_demonstrations
        benign = replay(context, planned, round(settings.benign_replay * len(safe)))
        numbers = {"safety_demonstrations": len(safe), "benign_replayed": len(benign)}
        fit_policy(context, planned, self.name, settings, [*safe, *benign], [], numbers)


class _RewardModelStage(Stage):
    """Training of one reward model (Llama 2, section 3.2.2)."""

    makes = "reward_model"
    reads = ("preferences/",)

    def fits(self, recipe: Recipe) -> dict[str, SupervisedSettings]:
        """Its one fit."""
        return {self.name: self._training(recipe)}

    def check(self, context: RunContext) -> None:
        """There are pairs of its axis."""
        assert self.axis is not None
        pairs = context.data.preferences[self.axis]
        context.data.require(f"preferences, axis {self.axis}", len(pairs))

    def run(self, context: RunContext, planned: PlannedStage) -> None:
        """Train it from the policy before it, and measure it on held-out pairs."""
        from rayward.pipelines.supervised.reward_models import run_reward_model

        assert self.axis is not None
        run_reward_model(context, planned, self.axis, self._training(context.recipe))

    def report(self, run: RunReading, planned: Sequence[PlannedStage]) -> ReportSection | None:
        """Accuracy, calibration and scores on held-out pairs."""
        from rayward.pipelines.supervised.report import reward_model_report

        found = [(one.id, run.stages[one.id]) for one in planned if one.id in run.stages]
        return ReportSection(
            id="reward-models",
            title="Reward models",
            template="supervised/reward_models.html.jinja",
            entries=tuple(
                reward_model_report(stage, self.label, result)
                for stage, result in found
                if result["evaluation"] is not None
            ),
        )

    @abstractmethod
    def _training(self, recipe: Recipe) -> RewardTrainingSettings: ...


class SafetyRewardModelStage(_RewardModelStage):
    """The safety reward model, which also learns safety labels."""

    name = "reward_safety"
    label = "safety reward model"
    Settings = SafetyRewardSettings
    axis = "safety"

    def _training(self, recipe: Recipe) -> RewardTrainingSettings:
        return recipe.reward_safety


class HelpfulnessRewardModelStage(_RewardModelStage):
    """The helpfulness reward model."""

    name = "reward_helpfulness"
    label = "helpfulness reward model"
    Settings = RewardTrainingSettings
    axis = "helpfulness"

    def _training(self, recipe: Recipe) -> RewardTrainingSettings:
        return recipe.reward_helpfulness
