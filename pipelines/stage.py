"""The contract of a stage: one class, in a folder of its own, says all that the rest asks of it.

    recipe -> check_recipe -> inputs (hashed) -> capacity -> check -> run -> report

What a class declares is read by whoever only reads a recipe, so its module imports no model
library and no Ray; its methods import what they need. The class is announced in pyproject.toml,
in the entry-point group `rayward.stages`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.supervised import SupervisedSettings
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.stages import Makes, declared_stages
from rayward.cluster.types import Axis, Prompt

if TYPE_CHECKING:
    from rayward.cluster.config import base
    from rayward.cluster.config.recipe import Recipe
    from rayward.cluster.records.reading import RunReading
    from rayward.pipelines.run.capacity import Moment
    from rayward.pipelines.run.context import RunContext
    from rayward.pipelines.run.models import KnownModels


@dataclass(frozen=True)
class Asked:
    """What a stage asks the policy."""

    section: str
    """Of the recipe, whose `sampling` says how."""
    sampling: SamplingSettings
    prompts: Sequence[Prompt]


@dataclass(frozen=True)
class ReportSection:
    """A part of the report. Stages that give the same id share one, with all their entries."""

    id: str
    title: str
    template: str
    """A Jinja template, as FOLDER/FILE below `rayward.pipelines`; it sees `entries` and `told`."""
    entries: tuple[Any, ...]
    told: Mapping[str, str] = field(default_factory=dict)
    """What the section says of its settings, by name."""
    step_times: tuple[Any, ...] = ()
    """Entries that know where the time of their steps went, for the report's part on time."""


class Stage(ABC):
    """One stage of a recipe."""

    name: ClassVar[str]
    """As recipes name it, and the section of its settings there."""
    label: ClassVar[str]
    """As people read it."""
    Settings: ClassVar[type[base.Settings]]
    """The model of its section in a recipe."""
    makes: ClassVar[Makes]
    """What comes out."""
    reads: ClassVar[tuple[str, ...]]
    """The data's tables that it reads, by how their names begin."""
    axis: ClassVar[Axis | None] = None
    """Of the reward model that it makes. Neighbours that make one run side by side."""
    needs: ClassVar[tuple[Axis, ...]] = ()
    """The reward models that it asks."""
    gathers: ClassVar[tuple[str, ...]] = ()
    """The stages whose data it takes up, where they came before it."""
    starts_from_base: ClassVar[bool] = False
    """Whether it takes a base model, which answers nobody and is not measured."""
    last: ClassVar[bool] = False
    """Whether it comes once, behind the last round."""

    def settings(self, recipe: Recipe) -> base.Settings:
        """Its section of a recipe."""
        return cast("base.Settings", getattr(recipe, self.name))

    def fits(self, recipe: Recipe) -> dict[str, SupervisedSettings]:
        """The settings of its supervised fits, by their place in the recipe."""
        return {}

    def sampling(self, recipe: Recipe) -> SamplingSettings | None:
        """How it asks the run's sampler; None: it does not."""
        return None

    def asked(self, context: RunContext) -> list[Asked]:
        """What it asks the policy, as far as that is known before it runs."""
        return []

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """What comes out depends on this, beside its settings, tables, policy and reward models."""
        return {}

    def capacity(self, recipe: Recipe) -> list[Moment] | None:
        """What it asks of the machines, moment by moment.

        None: the run's sampler, if it asks that, and then its fits.
        """
        return None

    def check_recipe(self, recipe: Recipe) -> None:  # noqa: B027 (most have nothing to say)
        """Look for settings of a recipe that do not go together, as it is read.

        Raises:
            InputError: names the setting.
        """

    def check(self, context: RunContext) -> None:  # noqa: B027 (as above)
        """Look for what it needs, before Ray starts.

        Raises:
            InputError: a table is empty, a file cannot be used, or settings contradict the data.
        """

    def check_models(self, context: RunContext, known: KnownModels) -> KnownModels:
        """Look at the models that it names, by their configurations.

        Returns:
            What is known of the policy after it.

        Raises:
            InputError: a path is not a model of its kind.
        """
        return known

    @abstractmethod
    def run(self, context: RunContext, planned: PlannedStage) -> None:
        """Do it, and complete it; a part that an earlier session finished is not done again."""

    def report(self, run: RunReading, planned: Sequence[PlannedStage]) -> ReportSection | None:
        """What the report tells of it; None: only what it tells of every stage.

        Args:
            run: what the run has left.
            planned: the stages of this name, one a round, in order.
        """
        return None


def stage_of(name: str) -> Stage:
    """The stage of a name that a recipe may have."""
    return cast("Stage", declared_stages()[name])


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages that a recipe names, in its order."""
    return [stage_of(name) for name in recipe.stages]


def all_stages(recipe: Recipe) -> list[Stage]:
    """The stages that a recipe names, and behind them those that measure every policy, which it
    need not name."""
    named = [stage for stage in stages_of(recipe) if stage.makes != "measurements"]
    measuring = [one.name for one in declared_stages().values() if one.makes == "measurements"]
    return [*named, *map(stage_of, measuring)]
