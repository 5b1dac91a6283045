"""What can be known to fail is asked before Ray starts, and before a stage has taken its hours."""

from cluster.config.recipe import Recipe
from cluster.config.roles import RolloutRole
from cluster.errors import InputError
from cluster.types import AXES
from pipelines.context import RunContext
from pipelines.preflight_models import check_models


def check(context: RunContext) -> None:
    """Look for everything that the recipe's stages will need.

    Raises:
        InputError: settings contradict each other, a table is empty, a path is not a model of its
            kind, or prompts and answers do not fit a model.
    """
    recipe, data = context.recipe, context.data
    if "sft" in recipe.stages:
        _require("demonstrations", len(data.demonstrations))
    for axis in AXES:
        if f"reward_{axis}" in recipe.stages:
            _require(f"preferences, axis {axis}", len(data.preferences[axis]))
    if "ppo" in recipe.stages:
        _require("prompts", len(data.prompts))
        if recipe.ppo.early_stop is not None and not data.validation_prompts:
            raise InputError(
                "ppo.early_stop", "no validation prompts", "null, or data with validation prompts"
            )
        _check_groups(recipe)
        _check_weight_sync(recipe)
    if {"sft", "ppo"} & set(recipe.stages):
        _check_engines(recipe.ppo.rollout)
    check_models(context)


def _require(name: str, rows: int) -> None:
    if not rows:
        raise InputError(f"data: {name}", rows, "at least one row for the stages of this recipe")


def _check_engines(rollout: RolloutRole) -> None:
    """An engine on GPUs needs one for each of its processes; on CPUs it may have any number."""
    gpus, processes = rollout.resources.gpus, rollout.tensor_parallel_size
    shares_one = processes == 1 and gpus <= 1
    if gpus and gpus != processes and not shares_one:
        raise InputError(
            "ppo.rollout.resources.gpus",
            gpus,
            f"as many as ppo.rollout.tensor_parallel_size, which is {processes}",
        )


def _check_groups(recipe: Recipe) -> None:
    settings = recipe.ppo
    for group in settings.colocate:
        if "critic" in group and not settings.has_critic:
            raise InputError(
                "ppo.colocate",
                group,
                f"roles without critic: {settings.advantage_estimator} has none",
            )
        labels = [getattr(settings, role).resources.labels for role in group]
        if any(one != labels[0] for one in labels):
            raise InputError("ppo.colocate", group, "roles with the same resources.labels")


def _check_weight_sync(recipe: Recipe) -> None:
    settings = recipe.ppo
    field, backend = "ppo.rollout.weight_sync.backend", settings.rollout.weight_sync.backend
    if backend == "object_store":
        return
    for role in ("policy", "rollout"):
        if not getattr(settings, role).resources.gpus:
            raise InputError(
                field, backend, f"object_store, because ppo.{role}.resources.gpus is 0"
            )
    together = any({"policy", "rollout"} <= set(group) for group in settings.colocate)
    if backend == "ipc" and not together:
        raise InputError(field, backend, "nccl, or policy and rollout in one group of ppo.colocate")
