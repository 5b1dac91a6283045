"""The recipe: everything that a run needs to know, as one document."""

from functools import cache
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, create_model, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from rayward.cluster.config.base import Settings
from rayward.cluster.config.context_distillation import ContextDistillationSettings
from rayward.cluster.config.evaluation import EvaluationSettings
from rayward.cluster.config.gates import GateSettings
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.config.red_teaming import RedTeamingSettings
from rayward.cluster.config.rejection_sampling import RejectionSamplingSettings
from rayward.cluster.config.supervised import (
    RewardTrainingSettings,
    SafetyRewardSettings,
    SafetySFTSettings,
    SFTSettings,
)
from rayward.cluster.config.tiny_world import LlamaShape, TinyWorldSizes
from rayward.cluster.config.tracking import TrackingSettings
from rayward.cluster.errors import InputError
from rayward.cluster.stages import declared_stages, reward_stage
from rayward.cluster.types import AXES


def _stage_names() -> list[str]:
    """The stages that are installed: in the order of a recipe's sections, then others."""
    own = [name for name in Recipe.model_fields if name in declared_stages()]
    return [*own, *(name for name in declared_stages() if name not in own)]


def _known(name: str) -> str:
    if name not in declared_stages():
        *others, last = map(repr, _stage_names())
        known = f"{', '.join(others)} or {last}"
        raise PydanticCustomError("unknown_stage", "Input should be {known}", {"known": known})
    return name


class _StageNames:
    """The names of the stages that are installed, where a schema is asked for."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "enum": _stage_names()}


StageName = Annotated[str, AfterValidator(_known), _StageNames()]


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
        declared = [declared_stages()[name] for name in self.stages]
        for index, stage in enumerate(declared):
            may_follow = [
                one.makes == "measurements" or (stage.makes != "measurements" and one.last)
                for one in declared[index + 1 :]
            ]
            if stage.last and not all(may_follow):
                raise InputError("stages", self.stages, f"{stage.name} after all others")
        return self

    @model_validator(mode="after")
    def _scores_can_be_had(self) -> Self:
        for axis in AXES:
            role = getattr(self.ppo, axis)
            stage = reward_stage(axis)
            needing = [name for name in self.stages if axis in declared_stages()[name].needs]
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
    def _stages_agree(self) -> Self:
        for name in self.stages:
            declared_stages()[name].check_recipe(self)
        return self


@cache
def recipe_type() -> type[Recipe]:
    """`Recipe`, with a section for each installed stage that it does not have by itself."""
    others: dict[str, Any] = {
        name: (stage.Settings, Field(default=stage.Settings(), description=stage.label))
        for name, stage in declared_stages().items()
        if name not in Recipe.model_fields
    }
    return create_model("Recipe", __base__=Recipe, **others) if others else Recipe
