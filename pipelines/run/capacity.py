"""What a recipe asks of the machines it runs on, moment by moment.

stage -> moments, one after another -> gangs, there at the same time -> roles, placed together
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from rayward.actors.requests import session_requests
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.roles import RolloutRole
from rayward.cluster.config.supervised import SupervisedSettings
from rayward.cluster.errors import InputError
from rayward.cluster.ray_runtime.placement import RoleRequest, missing_resources, total_cpus
from rayward.cluster.records.plan import measured_policies
from rayward.cluster.types import AXES
from rayward.pipelines.stage import Stage, all_stages, stages_of


@dataclass(frozen=True)
class Gang:
    """Roles that are placed at once: all of them or none."""

    requests: Sequence[RoleRequest]
    colocate: Sequence[Sequence[str]] = ()
    """Groups of role names that share a node."""


@dataclass(frozen=True)
class Moment:
    """What is there at the same time."""

    name: str
    """The stage, or the part of the recipe that it is for."""
    gangs: Sequence[Gang]

    @property
    def requests(self) -> list[RoleRequest]:
        """The roles of all gangs."""
        return [request for gang in self.gangs for request in gang.requests]


def moments(recipe: Recipe) -> list[Moment]:
    """All that the stages of a recipe, and its measurements, ask for at a time.

    Two reward models that are trained side by side are two moments: where there is room for one
    alone, the other waits.
    """
    measures = bool(measured_policies(recipe))
    stages = [one for one in all_stages(recipe) if measures or one.makes != "measurements"]
    return [moment for stage in stages for moment in _moments_of(stage, recipe)]


def required_cpus(recipe: Recipe) -> float:
    """Logical CPUs that the recipe's widest moment asks for; none waits for another."""
    asked = {moment.name: total_cpus(moment.requests) for moment in moments(recipe)}
    together = [stage for stage in stages_of(recipe) if stage.makes == "reward_model"]
    side_by_side = sum(asked[name] for stage in together for name in stage.fits(recipe))
    return max([side_by_side, *asked.values()])


def require_room(recipe: Recipe) -> None:
    """An embedded Ray never grows, so what it lacks now it will lack for ever.

    Raises:
        InputError: the stages ask for more than there is.
    """
    for moment in moments(recipe):
        missing = missing_resources(moment.requests, ray.cluster_resources())
        if missing:
            raise InputError(f"{moment.name}: resources", missing, "no more than this machine has")


def _moments_of(stage: Stage, recipe: Recipe) -> list[Moment]:
    own = stage.capacity(recipe)
    if own is not None:
        return own
    asks = stage.sampling(recipe) is not None
    sampler = [sampler_moment(stage.name, recipe)] if asks else []
    return [*sampler, *(_fit(*fit) for fit in stage.fits(recipe).items())]


def _fit(name: str, settings: SupervisedSettings) -> Moment:
    """A supervised fit, by the place of its settings in the recipe."""
    request = RoleRequest(name.rpartition(".")[2], settings.deepspeed.ranks, settings.resources)
    return Moment(name, [Gang([request])])


def sampler_moment(name: str, recipe: Recipe, others: Sequence[Gang] = ()) -> Moment:
    """The run's sampler, with the reward models that the recipe brings or makes, and others.

    Args:
        name: what it is for.
        recipe: whose roles they are.
        others: what is there at the same time.
    """
    made = {stage.axis for stage in stages_of(recipe)}
    axes = [axis for axis in AXES if axis in made or getattr(recipe.ppo, axis).path is not None]
    return Moment(name, [Gang(session_requests(recipe.ppo, axes)), *others])


def require_whole_engines(rollout: RolloutRole, section: str) -> None:
    """An engine on GPUs needs one for each of its processes; on CPUs it may have any number.

    Args:
        rollout: the engine's settings.
        section: of the recipe, that has them.

    Raises:
        InputError: it asks for another number of GPUs.
    """
    gpus, processes = rollout.resources.gpus, rollout.tensor_parallel_size
    shares_one = processes == 1 and gpus <= 1
    if gpus and gpus != processes and not shares_one:
        raise InputError(
            f"{section}.resources.gpus",
            gpus,
            f"as many as {section}.tensor_parallel_size, which is {processes}",
        )
