"""The recipe: everything that a run needs to know, as one document."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.config.base import Settings
from cluster.config.context_distillation import ContextDistillationSettings
from cluster.config.evaluation import EvaluationSettings
from cluster.config.gates import GateSettings
from cluster.config.ppo import PPOSettings
from cluster.config.red_teaming import RedTeamingSettings
from cluster.config.rejection_sampling import RejectionSamplingSettings
from cluster.config.supervised import (
    RewardTrainingSettings,
    SafetyRewardSettings,
    SafetySFTSettings,
    SFTSettings,
)
from cluster.config.tiny_world import LlamaShape, TinyWorldSizes
from cluster.config.tracking import TrackingSettings
from cluster.errors import InputError
from cluster.types import AXES, Axis

StageName = Literal[
    "sft",
    "safety_sft",
    "reward_safety",
    "reward_helpfulness",
    "rejection_sampling",
    "ppo",
    "red_teaming",
    "context_distillation",
    "evaluation",
]
POLICY_STAGES: tuple[StageName, ...] = (
    "sft",
    "safety_sft",
    "rejection_sampling",
    "ppo",
    "context_distillation",
)
"""The stages that make a policy."""
REWARD_STAGES: dict[Axis, StageName] = {
    "safety": "reward_safety",
    "helpfulness": "reward_helpfulness",
}
"""The stages that make a reward model."""
_SCORES_NEEDED: dict[StageName, tuple[Axis, ...]] = {
    "rejection_sampling": AXES,
    "ppo": AXES,
    "red_teaming": ("safety",),
    "context_distillation": ("safety",),
}


class DataSettings(Settings):
    """Where prompts, demonstrations and preferences come from: exactly one source."""

    path: str | None = None
    """A data directory as `rayward import` writes it, local or at any pyarrow.fs URI."""
    tiny_world: TinyWorldSizes | None = None
    """Generate the tiny world, whose oracle knows the truth, in these sizes."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.tiny_world is None):
            given = "neither" if self.path is None else "both"
            raise InputError("", given, "exactly one of path and tiny_world")
        return self


class ModelSettings(Settings):
    """The language model that the run starts from."""

    path: str | None = None
    """A transformers directory or hub id of a causal language model with a chat template."""
    make: LlamaShape | None = None
    """Make a small Llama and its tokenizer from the data on the spot."""

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.path is None) == (self.make is None):
            given = "neither" if self.path is None else "both"
            raise InputError("", given, "exactly one of path and make")
        return self


class Recipe(Settings):
    """One run, from data to a safer model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Short name of the run, in lower-case letters, digits and hyphens."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Every random draw of the run comes from this."""
    data: DataSettings
    """Where the data comes from."""
    model: ModelSettings
    """The language model that the run starts from."""
    stages: list[StageName] = Field(
        default=["sft", "reward_safety", "reward_helpfulness", "ppo"], min_length=1
    )
    """What happens, in this order. Each stage starts from the policy of the one before it."""
    rounds: int = Field(default=1, ge=1)
    """How often the stages are gone through. A new round starts from the start model again, with
    the data gathered so far; context distillation comes once, at the end."""
    sft: SFTSettings = SFTSettings()
    """Supervised fine-tuning."""
    safety_sft: SafetySFTSettings = SafetySFTSettings()
    """Supervised safety fine-tuning."""
    reward_safety: SafetyRewardSettings = SafetyRewardSettings()
    """Training of the safety reward model."""
    reward_helpfulness: RewardTrainingSettings = RewardTrainingSettings()
    """Training of the helpfulness reward model."""
    rejection_sampling: RejectionSamplingSettings = RejectionSamplingSettings()
    """Rejection sampling fine-tuning."""
    ppo: PPOSettings = PPOSettings()
    """Reinforcement learning; its samplers, reward models and mix serve the other stages too."""
    red_teaming: RedTeamingSettings = RedTeamingSettings()
    """The search for prompts that get through."""
    context_distillation: ContextDistillationSettings = ContextDistillationSettings()
    """Targeted safety context distillation."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How policies are measured."""
    gates: GateSettings | None = None
    """What a policy must hold for the recipe to go on; null asks nothing."""
    tracking: TrackingSettings = TrackingSettings()
    """Where metrics go, beside the run directory."""

    @model_validator(mode="after")
    def _stages_once(self) -> Self:
        repeated = sorted({stage for stage in self.stages if self.stages.count(stage) > 1})
        if repeated:
            expected = f"each stage at most once; repeated: {', '.join(repeated)}"
            raise InputError("stages", self.stages, expected)
        for last in ("context_distillation", "evaluation"):
            after = self.stages[self.stages.index(last) + 1 :] if last in self.stages else []
            if [stage for stage in after if stage != "evaluation"]:
                raise InputError("stages", self.stages, f"{last} after all others")
        return self

    @model_validator(mode="after")
    def _scores_can_be_had(self) -> Self:
        for axis in AXES:
            role = getattr(self.ppo, axis)
            stage = REWARD_STAGES[axis]
            needing = [name for name in self.stages if axis in _SCORES_NEEDED.get(name, ())]
            if not needing or role.path is not None:
                continue
            if stage not in self.stages:
                raise InputError(
                    f"ppo.{axis}.path",
                    None,
                    f"a reward model, because {stage} is not among the stages",
                )
            if self.stages.index(stage) > self.stages.index(needing[0]):
                raise InputError("stages", self.stages, f"{stage} before {needing[0]}")
        return self

    @model_validator(mode="after")
    def _adapters_end_the_recipe(self) -> Self:
        lora = self.ppo.policy.lora
        if "ppo" not in self.stages or lora is None or lora.save_as != "adapter":
            return self
        behind = [one for one in self.stages[self.stages.index("ppo") + 1 :] if one != "evaluation"]
        if behind:
            raise InputError(
                "ppo.policy.lora.save_as",
                lora.save_as,
                f"merged, because {behind[0]} starts from the whole model",
            )
        return self
