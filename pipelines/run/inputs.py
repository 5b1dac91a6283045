"""What each stage of a recipe depends on, and so what it is called.

All names are known before anything is run: a stage is named by its settings, the digests of the
tables that it reads, and the names of the stages that it starts from. Where processes run, how
often they save, and how long they may take is no part of a name: nothing that comes out depends
on it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.topology import TOPOLOGY
from rayward.cluster.records.plan import (
    PREVIOUS,
    START,
    PlannedStage,
    evaluation_of,
    make_plan,
    measured_policies,
    yardsticks,
)
from rayward.cluster.runs.artifacts import Artifact, model_identity
from rayward.cluster.runs.manifest import code_version, file_digest
from rayward.cluster.types import AXES, Axis
from rayward.pipelines.stage import all_stages, stage_of


def name_artifacts(recipe: Recipe, digests: Mapping[str, str], room: int) -> dict[str, Artifact]:
    """Every stage and measurement of a recipe, by its id.

    Args:
        recipe: the recipe.
        digests: SHA-256 of the data's tables, by their names below the data directory.
        room: the longest conversation that the policies are measured with, in tokens.
    """
    named: dict[str, Artifact] = {START: Artifact(START, _start_inputs(recipe, digests))}
    for stage in make_plan(recipe):
        if stage_of(stage.name).makes != "measurements":
            named[stage.id] = Artifact(stage.id, _inputs(recipe, stage, digests, named))
    if recipe.gates is not None and recipe.gates.previous is not None:
        named[PREVIOUS] = Artifact(PREVIOUS, {"model": model_identity(recipe.gates.previous)})
    made = yardsticks(recipe)
    judges = {axis: _reward_model(recipe, axis, made, named) for axis in AXES}
    (measuring,) = (one for one in all_stages(recipe) if one.makes == "measurements")
    for policy in [*measured_policies(recipe), *([PREVIOUS] if PREVIOUS in named else [])]:
        inputs = {
            "version": _version(),
            "seed": recipe.seed,
            "oracle": recipe.data.tiny_world is not None,
            "room": room,
            "settings": hashed(measuring.settings(recipe)),
            "policy": named[policy].name,
            "mix": recipe.ppo.mix.model_dump(mode="json"),
            "rollout": hashed(recipe.ppo.rollout),
            "reward_models": judges,
            "data": _chosen(digests, measuring.reads),
            **measuring.inputs(recipe),
        }
        named[evaluation_of(policy)] = Artifact(evaluation_of(policy), inputs)
    return named


def _start_inputs(recipe: Recipe, digests: Mapping[str, str]) -> dict[str, Any]:
    if recipe.model.path is not None:
        return {"model": model_identity(recipe.model.path)}
    return {
        "version": _version(),
        "make": hashed(recipe.model),
        "seed": recipe.seed,
        "data": _chosen(digests, ("demonstrations/",)),
    }


def _inputs(
    recipe: Recipe,
    planned: PlannedStage,
    digests: Mapping[str, str],
    named: Mapping[str, Artifact],
) -> dict[str, Any]:
    stage = stage_of(planned.name)
    return {
        "version": _version(),
        "seed": recipe.seed,
        # The tiny world has templates and preprompts of its own.
        "tiny_world": recipe.data.tiny_world is not None,
        "round": planned.round,
        "settings": hashed(stage.settings(recipe)),
        "data": _chosen(digests, stage.reads),
        "policy": named[planned.policy].name,
        "gathered": [named[one].name for one in planned.gathered],
        "reward_models": {
            axis: _reward_model(recipe, axis, planned.reward_models, named) for axis in stage.needs
        },
        # Whoever asks the run's sampler asks the engine that PPO's settings describe.
        "rollout": None if stage.sampling(recipe) is None else hashed(recipe.ppo.rollout),
        "own": stage.inputs(recipe),
    }


def _reward_model(
    recipe: Recipe, axis: Axis, made: Mapping[Axis, str], named: Mapping[str, Artifact]
) -> dict[str, Any] | None:
    """The reward model of an axis, and how it reads; None where there is none."""
    role = getattr(recipe.ppo, axis)
    reads = {"settings": hashed(role), "template": given_file(role.chat_template)}
    if role.path is not None:
        return reads | {"model": model_identity(role.path)}
    return reads | {"model": named[made[axis]].name} if axis in made else None


def hashed(settings: BaseModel) -> dict[str, Any]:
    """Settings as they are hashed: without those that only say where something runs."""
    return _without(settings.model_dump(mode="json"))


def _without(document: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without(value) if isinstance(value, dict) else value
        for name, value in document.items()
        if name not in TOPOLOGY
    }


def given_file(path: str | None) -> str | None:
    """The digest of a file that settings name: what is in it counts, not where it is.

    None where no file is named, or it is not there: whoever reads it says so.
    """
    return file_digest(Path(path)) if path is not None and Path(path).is_file() else None


def given_model(path: str | None) -> dict[str, Any] | None:
    """What tells a model that settings name from another; None where none is named."""
    return None if path is None else model_identity(path)


def _chosen(digests: Mapping[str, str], prefixes: Sequence[str]) -> dict[str, str]:
    return {
        name: digest
        for name, digest in digests.items()
        if any(name.lstrip("/").startswith(prefix) for prefix in prefixes)
    }


def _version() -> str | bool | None:
    return code_version()["version"]
