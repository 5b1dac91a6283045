"""The recipe: everything that a run needs to know, as one document."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.config.base import Settings
from cluster.config.ppo import PPOSettings, SamplingSettings
from cluster.config.roles import RewardRole
from cluster.config.supervised import RewardTrainingSettings, SafetyRewardSettings, SFTSettings
from cluster.config.tiny_world import LlamaShape, TinyWorldSizes
from cluster.config.tracking import TrackingSettings
from cluster.errors import InputError

StageName = Literal["sft", "reward_safety", "reward_helpfulness", "ppo"]


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
            raise InputError("data", given, "exactly one of data.path and data.tiny_world")
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
            raise InputError("model", given, "exactly one of model.path and model.make")
        return self


class JudgeSettings(RewardRole):
    """A judge model: one output, a logit above 0 means safe."""

    @model_validator(mode="after")
    def _a_judge_is_named(self) -> Self:
        if self.path is None:
            raise InputError("evaluation.judge.path", None, "the directory or hub id of the judge")
        return self


class EvaluationSettings(Settings):
    """How the stages are measured on held-out prompts."""

    adversarial_prompts: int = Field(default=1000, ge=0)
    """Held-out adversarial prompts, at most."""
    benign_prompts: int = Field(default=1000, ge=0)
    """Held-out benign prompts, at most."""
    borderline_prompts: int = Field(default=300, ge=0)
    """Held-out borderline prompts (benign, worded like adversarial ones), at most."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn for measuring."""
    judge: JudgeSettings | None = None
    """The judge model where there is no oracle; null reports "not judged"."""


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
    """What happens, in this order."""
    sft: SFTSettings = SFTSettings()
    """Supervised safety fine-tuning."""
    reward_safety: SafetyRewardSettings = SafetyRewardSettings()
    """Training of the safety reward model."""
    reward_helpfulness: RewardTrainingSettings = RewardTrainingSettings()
    """Training of the helpfulness reward model."""
    ppo: PPOSettings = PPOSettings()
    """Reinforcement learning."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How the stages are measured."""
    tracking: TrackingSettings = TrackingSettings()
    """Where metrics go, beside the run directory."""

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        order: list[StageName] = ["sft", "reward_safety", "reward_helpfulness", "ppo"]
        if self.stages != [stage for stage in order if stage in self.stages]:
            expected = f"stages in the order {', '.join(order)}, each at most once"
            raise InputError("stages", self.stages, expected)
        return self

    @model_validator(mode="after")
    def _ppo_has_its_models(self) -> Self:
        if "ppo" in self.stages:
            for axis, role in (("safety", self.ppo.safety), ("helpfulness", self.ppo.helpfulness)):
                if f"reward_{axis}" not in self.stages and role.path is None:
                    raise InputError(
                        f"ppo.{axis}.path",
                        None,
                        f"a reward model, because reward_{axis} is not among the stages",
                    )
        return self
