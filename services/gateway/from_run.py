"""What a run's directory serves, with no configuration: its last policy and its reward models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayward.cluster.config.mixes import LagrangianMixSettings, MixSettings
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import InputError
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.stages import declared_stages, reward_stage
from rayward.cluster.types import AXES, Axis


def serving_of_run(root: Path) -> dict[str, Any]:
    """The serving document of a run: everything that it made and that can be served.

    The policy is the one that passed the run's gates, else the last that it made; the mix is that
    of its training.

    Raises:
        InputError: there is no run, or it has made nothing yet.
    """
    run = RunDirectory(root)
    if not run.recipe_path.is_file():
        raise InputError("--run", str(root), "the directory of a run")
    recipe = run.recipe()
    policy, reward_models = _policy(run), _reward_models(run, recipe)
    if policy is None and not reward_models:
        raise InputError("--run", str(root), "a run that has made a model; this one has not yet")
    document: dict[str, Any] = {"jobs": {"runs_root": str(run.root.parent)}}
    if policy is not None:
        document["policy"] = {"path": policy}
    if reward_models:
        document["reward"] = {
            **{axis: _model(path, recipe, axis) for axis, path in reward_models.items()},
            "policy": policy,
            "mix": _mix(run, recipe).model_dump(mode="json"),
        }
    return document


def _policy(run: RunDirectory) -> str | None:
    if run.promoted_path.is_file():
        promoted = json.loads(run.promoted_path.read_text(encoding="utf-8"))
        # The run may have been moved since.
        here = run.model_dir(promoted["policy"])
        return str(here if here.is_dir() else promoted["model"])
    policies = {one.name for one in declared_stages().values() if one.makes == "policy"}
    made = [name for name in run.manifest()["lineage"] if _stage_of(name) in policies]
    return str(run.model_dir(made[-1])) if made else None


def _stage_of(name: str) -> str:
    """A stage's name without its round: ppo of ppo-2."""
    stage, _, number = name.rpartition("-")
    return stage if number.isdigit() else name


def _reward_models(run: RunDirectory, recipe: Recipe) -> dict[Axis, str]:
    """Those that the recipe brought, else those that the run made first, its yardsticks."""
    found: dict[Axis, str] = {}
    lineage: Mapping[str, Any] = run.manifest()["lineage"]
    for axis in AXES:
        brought, stage = getattr(recipe.ppo, axis).path, reward_stage(axis)
        if brought is not None:
            found[axis] = brought
        elif stage in lineage:
            found[axis] = str(run.model_dir(stage))
    return found


def _model(path: str, recipe: Recipe, axis: Axis) -> dict[str, Any]:
    """What bears on a model's scores, as it was in training; where and how fast is for here."""
    role = getattr(recipe.ppo, axis)
    kept = {"precision", "chat_template", "max_tokens_per_microbatch"}
    return {**role.model_dump(include=kept), "path": path}


def _mix(run: RunDirectory, recipe: Recipe) -> MixSettings:
    """The mix of training; one that learns is as it was at the end."""
    mix = recipe.ppo.mix
    if not isinstance(mix, LagrangianMixSettings) or not run.metrics_path.is_file():
        return mix
    name, last = "reward/lagrange_multiplier", mix.initial_multiplier
    with run.metrics_path.open(encoding="utf-8") as lines:
        for line in lines:
            # A run that was killed may have left a line half written.
            last = json.loads(line).get(name, last) if line.endswith("}\n") else last
    return mix.model_copy(update={"initial_multiplier": last})
