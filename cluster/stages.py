"""The stages that a recipe may name, and what each declares of itself.

A stage is one class (`rayward.pipelines.stage`), announced in the entry-point group
`rayward.stages` under its name. Configuration, the plan and the services go by what it declares
and name no stage themselves.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal, Protocol

from rayward.cluster.types import Axis

if TYPE_CHECKING:
    from rayward.cluster.config.base import Settings as _Settings
    from rayward.cluster.config.recipe import Recipe

_GROUP = "rayward.stages"

Makes = Literal["policy", "reward_model", "prompts", "measurements"]


class DeclaredStage(Protocol):
    """What a stage says of itself; nothing of it needs a model or Ray."""

    name: str
    """As recipes name it, and the section of its settings there."""
    label: str
    """As people read it."""
    Settings: type["_Settings"]
    """The model of its section in a recipe."""
    makes: Makes
    """What comes out. Measurements are made of every policy, by themselves."""
    axis: Axis | None
    """Of the reward model that it makes."""
    needs: tuple[Axis, ...]
    """The reward models that it asks."""
    gathers: tuple[str, ...]
    """The stages whose data it takes up, where they came before it."""
    starts_from_base: bool
    """Whether it takes a base model, which answers nobody and is not measured."""
    last: bool
    """Whether it comes once, behind the last round."""

    def check_recipe(self, recipe: "Recipe") -> None:
        """Look for settings of a recipe that do not go together, as it is read.

        Raises:
            InputError: names the setting.
        """


@cache
def declared_stages() -> Mapping[str, DeclaredStage]:
    """All stages that are installed, by their names.

    Raises:
        RuntimeError: two stages have one name.
    """
    found: dict[str, DeclaredStage] = {}
    for announced in entry_points(group=_GROUP):
        stage: DeclaredStage = announced.load()()
        if stage.name in found:
            raise RuntimeError(f"two stages are called {stage.name}; one is {announced.value}")
        found[stage.name] = stage
    return found


def reward_stage(axis: Axis) -> str:
    """The stage that trains the reward model of an axis."""
    return next(one.name for one in declared_stages().values() if one.axis == axis)


def makes_policy(stage: str) -> bool:
    """Whether a policy comes out of a stage."""
    return declared_stages()[stage].makes == "policy"


def makes_reward_model(stage: str) -> bool:
    """Whether a reward model comes out of a stage."""
    return declared_stages()[stage].makes == "reward_model"
