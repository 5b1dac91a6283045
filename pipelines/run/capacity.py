"""What a recipe asks of the machines it runs on, moment by moment.

stage -> moments, one after another -> gangs, there at the same time -> roles, placed together
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from rayward.actors.requests import attacker_requests, role_requests, session_requests
from rayward.cluster.config.evaluation import answer_judges
from rayward.cluster.config.recipe import REWARD_STAGES, Recipe, StageName
from rayward.cluster.config.roles import ModelRole
from rayward.cluster.config.supervised import SupervisedSettings
from rayward.cluster.errors import InputError
from rayward.cluster.ray_runtime.placement import RoleRequest, missing_resources, total_cpus
from rayward.cluster.records.plan import measured_policies
from rayward.cluster.types import AXES


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
    found = [moment for stage in recipe.stages for moment in _of_stage(recipe, stage)]
    return [*found, *_of_measurements(recipe)] if measured_policies(recipe) else found


def required_cpus(recipe: Recipe) -> float:
    """Logical CPUs that the recipe's widest moment asks for; none waits for another."""
    asked = {moment.name: total_cpus(moment.requests) for moment in moments(recipe)}
    side_by_side = sum(asked.get(stage, 0.0) for stage in REWARD_STAGES.values())
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


def _of_stage(recipe: Recipe, stage: StageName) -> list[Moment]:
    if stage == "evaluation":
        return []  # every policy is measured
    if stage == "ppo":
        return [Moment(stage, [Gang(role_requests(recipe.ppo), recipe.ppo.colocate)])]
    settings = getattr(recipe, stage)
    if isinstance(settings, SupervisedSettings):
        return [Moment(stage, [_fit(stage, settings)])]
    gangs = [_session(recipe)]
    if stage == "red_teaming" and recipe.red_teaming.attacker is not None:
        gangs.append(Gang(attacker_requests(recipe.red_teaming.attacker)))
    asked = [Moment(stage, gangs)]
    fit: SupervisedSettings | None = getattr(settings, "fit", None)
    return asked if fit is None else [*asked, Moment(f"{stage}.fit", [_fit("fit", fit)])]


def _of_measurements(recipe: Recipe) -> list[Moment]:
    evaluation, session = recipe.evaluation, _session(recipe)
    # Who is there at the same time; where an oracle judges, it is only less.
    together: dict[str, dict[str, ModelRole | None]] = {
        "evaluation": {"judge": evaluation.judge, "refusal_judge": evaluation.refusal_judge},
        "evaluation.truthfulqa": {
            field.rpartition(".")[2]: judge for field, judge in answer_judges(evaluation).items()
        },
        "evaluation.toxigen": {"judge": evaluation.toxigen.judge} if evaluation.toxigen else {},
    }
    return [
        Moment(
            section,
            [
                session,
                *(
                    Gang([RoleRequest(role, 1, judge.resources)])
                    for role, judge in judges.items()
                    if judge is not None
                ),
            ],
        )
        for section, judges in together.items()
    ]


def _session(recipe: Recipe) -> Gang:
    """Samplers, with the reward models that the recipe brings or makes."""
    made = [axis for axis in AXES if REWARD_STAGES[axis] in recipe.stages]
    brought = [axis for axis in AXES if getattr(recipe.ppo, axis).path is not None]
    axes = [axis for axis in AXES if axis in {*made, *brought}]
    return Gang(session_requests(recipe.ppo, axes))


def _fit(name: str, settings: SupervisedSettings) -> Gang:
    return Gang([RoleRequest(name, settings.deepspeed.ranks, settings.resources)])
