"""What a recipe's stages amount to, round by round: who starts from whom.

round:  sft -> safety_sft -> { reward_safety, reward_helpfulness } -> rejection_sampling
            -> ppo -> red_teaming          (the order is the recipe's own)
end:    context_distillation, evaluation
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.stages import declared_stages, makes_policy, reward_stage
from rayward.cluster.types import AXES, Axis

START = "start"
"""The policy that a recipe starts from."""
PREVIOUS = "previous"
"""The policy that a recipe's last one is held against, where its gates name one."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage of one round. Stages are named by their ids."""

    name: str
    round: int
    id: str
    """The stage's name, with the round behind it from the second on: "ppo", "ppo-2"."""
    policy: str
    """The policy that it starts from: a stage, or `START`."""
    reward_models: Mapping[Axis, str]
    """The stages of this round that made the reward models it may use."""
    gathered: tuple[str, ...]
    """Earlier stages whose data it uses: best samples, or prompts that got through."""

    @property
    def makes_policy(self) -> bool:
        """Whether a policy comes out."""
        return makes_policy(self.name)


def make_plan(recipe: Recipe) -> list[PlannedStage]:
    """All stages in the order in which they happen."""
    plan: list[PlannedStage] = []
    policy, reward_models = START, dict[Axis, str]()

    def add(name: str, number: int, stage_id: str) -> None:
        nonlocal policy
        declared = declared_stages()[name]
        gathered = tuple(one.id for one in plan if one.name in declared.gathers)
        plan.append(PlannedStage(name, number, stage_id, policy, dict(reward_models), gathered))
        policy = stage_id if makes_policy(name) else policy
        if declared.axis is not None:
            reward_models[declared.axis] = stage_id

    for number in range(1, recipe.rounds + 1):
        # A new round starts from the base model, with the data gathered so far.
        policy = START
        reward_models.clear()
        for name in recipe.stages:
            if not declared_stages()[name].last:
                add(name, number, name if number == 1 else f"{name}-{number}")
    for name in recipe.stages:
        if declared_stages()[name].last:
            add(name, recipe.rounds, name)
    return plan


def measured_policies(recipe: Recipe) -> list[str]:
    """The policies that are measured, in order: those that stages make, and a given start.

    The start of a recipe that begins with SFT is a base model, which answers nobody; so is one
    that is made on the spot. A recipe of reward models alone has no policy to measure.
    """
    made = [stage.id for stage in make_plan(recipe) if stage.makes_policy]
    declared = [declared_stages()[name] for name in recipe.stages]
    has_start = recipe.model.path is not None and not any(one.starts_from_base for one in declared)
    asked = any(one.makes == "measurements" for one in declared)
    return [START, *made] if has_start and (made or asked) else made


def parent_of(recipe: Recipe, policy: str) -> str | None:
    """The measured policy that a policy came from; None for the first of a round."""
    stages = {stage.id: stage for stage in make_plan(recipe)}
    if policy not in stages or stages[policy].policy not in measured_policies(recipe):
        return None
    return stages[policy].policy


def yardsticks(recipe: Recipe) -> dict[Axis, str]:
    """The stages whose reward models score every policy that is measured: the first round's.

    One scale for all rounds; those that a later round trains are for that round's training.
    """
    first = [stage for stage in make_plan(recipe) if stage.round == 1]
    return {axis: stage.id for axis in AXES for stage in first if stage.name == reward_stage(axis)}


_EVALUATION = "evaluation/"


def evaluation_of(policy: str) -> str:
    """The name of a policy's measurement among the stages."""
    return _EVALUATION + policy


def measured_by(stage: str) -> str | None:
    """The policy that a stage measures, by the stage's id; None for one that makes something."""
    return stage.removeprefix(_EVALUATION) if stage.startswith(_EVALUATION) else None
