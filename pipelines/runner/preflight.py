"""What can be known to fail is asked before Ray starts, and before a stage has taken its hours."""

from rayward.cluster.config.roles import RolloutRole
from rayward.cluster.errors import InputError
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.models import check_reward_models, check_start, require_prompts
from rayward.pipelines.stage import all_stages


def check(context: RunContext) -> None:
    """Look for everything that the recipe's stages will need.

    Raises:
        InputError: settings contradict each other, a table is empty, a file cannot be used, a path
            is not a model of its kind, or prompts and answers do not fit a model.
    """
    stages = all_stages(context.recipe)
    for stage in stages:
        stage.check(context)
    _check_engines(context.recipe.ppo.rollout)
    known = check_start(context)
    for stage in stages:
        known = stage.check_models(context, known)
    if known.tokenizer is not None:
        require_prompts(context, known.tokenizer)
    check_reward_models(context, known)


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
