"""Topology: the settings that say where a recipe runs, and have no part in what comes out.

They are left out of the names of what a run makes (`rayward.pipelines.run.inputs`), and
they may differ when a run is resumed: a checkpoint fits whatever they say. What changes how
learning goes, such as the ranks that an optimizer's state is split over, is none of them.
"""

from collections.abc import Mapping
from typing import Any

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import InputError

TOPOLOGY = frozenset(
    {
        "resources",
        "colocate",
        "checkpoint",
        "phase_timeout_s",
        "weight_sync",
        "kv_cache_gib",
        "gpu_memory_utilization",
        "replicas",
    }
)
"""The names of settings, or of groups of them, that stand for topology wherever they occur."""


def moved_settings(started: Recipe, given: Recipe) -> dict[str, list[Any]]:
    """The topology that differs between a run's recipe and the one that it is to go on with.

    Returns:
        By setting: what it was, and what it becomes.

    Raises:
        InputError: the recipes differ in more than topology and trackers.
    """
    before, after = flat_settings(started), flat_settings(given)
    moved = {}
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name), after.get(name)
        if old != new and not _may_move(name, started):
            raise InputError(name, new, f"{old!r}, with which the run was started")
        if old != new:
            moved[name] = [old, new]
    return moved


def flat_settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings by their dotted names, but for those of trackers."""
    return _flatten(recipe.model_dump(mode="json", exclude={"tracking"}))


def is_topology(name: str) -> bool:
    """Whether a setting, by its dotted name, says where a recipe runs and nothing else."""
    return not TOPOLOGY.isdisjoint(name.split("."))


def _may_move(name: str, recipe: Recipe) -> bool:
    if name == "ppo.rollout.replicas" and recipe.ppo.max_staleness > 0:
        # A checkpoint then holds answers by the worker that they were dealt to.
        return False
    return is_topology(name)


def _flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
