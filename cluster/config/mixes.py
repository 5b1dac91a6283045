"""Settings of the reward mixes: how two scores become one reward."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from rayward.cluster.config.base import Settings
from rayward.cluster.errors import InputError


class PiecewiseMixSettings(Settings):
    """The paper's rule: the safety model decides where it must (Llama 2, section 3.4.3)."""

    name: Literal["piecewise"] = "piecewise"
    """Which reward mix this is."""
    threshold: float = Field(default=0.15, gt=0, lt=1)
    """Below this safety probability (strictly) the safety model decides on any prompt."""


class WeightedSumMixSettings(Settings):
    """A weighted sum of the two logits, on every prompt."""

    name: Literal["weighted_sum"] = "weighted_sum"
    """Which reward mix this is."""
    safety_weight: float = Field(default=0.5, ge=0)
    """Weight of the safety logit."""
    helpfulness_weight: float = Field(default=0.5, ge=0)
    """Weight of the helpfulness logit."""

    @model_validator(mode="after")
    def _one_counts(self) -> Self:
        if not self.safety_weight + self.helpfulness_weight:
            raise InputError("safety_weight", 0.0, "a weight above 0 for one of the two")
        return self


class LagrangianMixSettings(Settings):
    """Helpfulness under a limit on the cost (Dai et al. 2023, "Safe RLHF", section 3.2).

    The cost of an answer is its probability of being unsafe by the safety model, in [0, 1].
    """

    name: Literal["lagrangian"] = "lagrangian"
    """Which reward mix this is."""
    cost_limit: float = Field(default=0.01, ge=0, le=1)
    """d: the mean cost of a batch should not be above this."""
    initial_multiplier: float = Field(default=1.0, gt=0)
    """Lambda at the start: the safety logit's weight beside 1 for the helpfulness logit."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Step of the ascent on log lambda."""
    min_multiplier: float = Field(default=0.01, gt=0)
    """Lambda never falls below this."""
    max_multiplier: float = Field(default=10.0, gt=0)
    """Lambda never rises above this."""

    @model_validator(mode="after")
    def _multiplier_in_its_range(self) -> Self:
        if not self.min_multiplier <= self.initial_multiplier <= self.max_multiplier:
            raise InputError(
                "initial_multiplier",
                self.initial_multiplier,
                f"a number from min_multiplier, {self.min_multiplier}, to max_multiplier, "
                f"{self.max_multiplier}",
            )
        return self


def _kind(mix: object) -> object:
    """Which mix is meant: by name, and the paper's where none is given."""
    return (
        str(mix.get("name", "piecewise")) if isinstance(mix, dict) else getattr(mix, "name", None)
    )


MixSettings = Annotated[
    Annotated[PiecewiseMixSettings, Tag("piecewise")]
    | Annotated[WeightedSumMixSettings, Tag("weighted_sum")]
    | Annotated[LagrangianMixSettings, Tag("lagrangian")],
    Discriminator(_kind),
]
