"""Safety RLHF on a Ray cluster: a safer language model, no less helpful, with the evidence.

recipe = rayward.load_recipe("demo", ["seed=1"])
summary = rayward.run(recipe, "runs/mine")
rayward.read_run("runs/mine").status().state
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# This is executed by whoever imports any module of the package, so nothing is imported early.
if TYPE_CHECKING:
    from rayward.cluster.config.recipe import Recipe
    from rayward.cluster.runs.run_directory import RunDirectory

__all__ = ["load_recipe", "read_run", "run"]


def load_recipe(
    recipe: str | Path, overrides: Sequence[str] = (), overlays: Sequence[str | Path] = ()
) -> Recipe:
    """Read a recipe.

    Args:
        recipe: a YAML file, or the name of a recipe that comes with Rayward, such as "demo".
        overrides: settings to change, as `ppo.steps=20`; the values are YAML.
        overlays: YAML files that hold a part of a recipe, the last one on top.

    Raises:
        InputError: a file cannot be read, or a setting is unknown or wrong.
    """
    from rayward.cluster.config import load
    from rayward.cluster.config.shipped import find_recipe

    paths = [Path(overlay) for overlay in overlays]
    return load.load_recipe(find_recipe(str(recipe)), list(overrides), paths)


def run(
    recipe: Recipe, out: str | Path, *, resume: bool = False, address: str | None = None
) -> dict[str, Any]:
    """Run a recipe from its data to its report.

    Args:
        recipe: what to do.
        out: the run directory: a new one, or that of a run to go on with.
        resume: go on with the run in `out`; finished stages are not run again.
        address: of a running Ray cluster (`host:port`, `ray://host:port` or `auto`); None starts
            an embedded Ray.

    Returns:
        The summary, as summary.json holds it: rates are shares, times are seconds.

    Raises:
        InputError: the recipe, its data, its models or the address cannot be used.
        GateFailed: a policy does not hold what the recipe's gates require.
        NodeLost: a machine of the cluster is gone; `resume` goes on with what is left.
        RunStopped: the run was asked to stop, by SIGINT or SIGTERM; `resume` goes on.
    """
    from rayward.cluster.ray_runtime.session import check_address

    check_address(address)
    from rayward.pipelines.runner.run_recipe import run_recipe

    return run_recipe(recipe, Path(out).absolute(), resume, address)


def read_run(path: str | Path) -> RunDirectory:
    """Read a run directory; nothing is written there.

    Raises:
        InputError: no run was started there.
    """
    from rayward.cluster.errors import InputError
    from rayward.cluster.runs.run_directory import RunDirectory, has_run

    if not has_run(Path(path)):
        raise InputError("path", str(path), "the directory of a run")
    return RunDirectory(Path(path))
