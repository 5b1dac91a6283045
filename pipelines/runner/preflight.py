"""What can be known to fail is asked before Ray starts, and before a stage has taken its hours."""

from rayward.pipelines.run.capacity import require_whole_engines
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
    require_whole_engines(context.recipe.ppo.rollout, "ppo.rollout")
    known = check_start(context)
    for stage in stages:
        known = stage.check_models(context, known)
    require_prompts(context, known)
    check_reward_models(context, known)
