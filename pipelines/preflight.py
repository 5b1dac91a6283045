"""What can be known to fail is asked before Ray starts, and before a stage has taken its hours."""

from actors.models import check_model
from cluster.errors import InputError
from cluster.types import AXES
from pipelines.context import RunContext


def check(context: RunContext) -> None:
    """Look for everything that the recipe's stages will need.

    Raises:
        InputError: a table is empty, or a path is not a model of its kind.
    """
    recipe, data = context.recipe, context.data
    if "sft" in recipe.stages:
        _require("demonstrations", len(data.demonstrations))
    for axis in AXES:
        if f"reward_{axis}" in recipe.stages:
            _require(f"preferences, axis {axis}", len(data.preferences[axis]))
    if recipe.model.path is not None:
        check_model(recipe.model.path, "causal_lm", "model.path")
    if "ppo" in recipe.stages:
        _require("prompts", len(data.prompts))
        for role in ("policy", "reference"):
            path = getattr(recipe.ppo, role).path
            if path is not None:
                check_model(path, "causal_lm", f"ppo.{role}.path")
        for role in ("critic", "safety", "helpfulness"):
            path = getattr(recipe.ppo, role).path
            if path is not None:
                check_model(path, "scalar", f"ppo.{role}.path")
    judge = recipe.evaluation.judge
    if judge is not None and judge.path is not None and data.oracle is None:
        check_model(judge.path, "scalar", "evaluation.judge.path")


def _require(name: str, rows: int) -> None:
    if not rows:
        raise InputError(f"data: {name}", rows, "at least one row for the stages of this recipe")
