"""What can be known to fail is asked before Ray starts, and before a stage has taken its hours."""

from transformers import AutoConfig

from actors.models import check_model
from cluster.errors import InputError
from cluster.types import AXES
from pipelines.context import RunContext
from pipelines.stage_ppo import max_model_len


def check(context: RunContext) -> None:
    """Look for everything that the recipe's stages will need.

    Raises:
        InputError: a table is empty, a path is not a model of its kind, or the start model is too
            short for the prompts and answers that the recipe allows.
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
        _check_ppo(context)
    judge = recipe.evaluation.judge
    if judge is not None and judge.path is not None and data.oracle is None:
        check_model(judge.path, "scalar", "evaluation.judge.path")
    _check_length(context)


def _check_ppo(context: RunContext) -> None:
    settings = context.recipe.ppo
    _require("prompts", len(context.data.prompts))
    if settings.early_stop is not None and not context.data.validation_prompts:
        raise InputError(
            "ppo.early_stop", "no validation prompts", "null, or data with validation prompts"
        )
    for role in ("policy", "reference"):
        path = getattr(settings, role).path
        if path is not None:
            check_model(path, "causal_lm", f"ppo.{role}.path")
    for role in ("critic", "safety", "helpfulness"):
        path = getattr(settings, role).path
        if path is not None:
            check_model(path, "scalar", f"ppo.{role}.path")


def _check_length(context: RunContext) -> None:
    recipe = context.recipe
    room: int | None = None
    if recipe.model.make is not None:
        room = recipe.model.make.max_position_embeddings
    elif recipe.model.path is not None:
        config = AutoConfig.from_pretrained(recipe.model.path)
        room = getattr(config, "max_position_embeddings", None)
    needed = max_model_len(recipe)
    if room is not None and needed > room:
        raise InputError(
            "sampling.max_prompt_tokens + max_response_tokens",
            needed,
            f"at most the model's {room} positions, under ppo and under evaluation",
        )


def _require(name: str, rows: int) -> None:
    if not rows:
        raise InputError(f"data: {name}", rows, "at least one row for the stages of this recipe")
