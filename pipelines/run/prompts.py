"""What a stage may ask: the data's prompts, and those that red teaming gathered before it."""

from collections.abc import Sequence

import numpy as np

from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.records.tables import read_prompts
from rayward.cluster.seeds import stage_seed
from rayward.cluster.types import Prompt
from rayward.pipelines.run.context import RunContext

RED_TEAM_PROMPTS = "prompts.parquet"


def training_prompts(context: RunContext, stage: PlannedStage) -> list[Prompt]:
    """The data's training prompts, and what red teaming found before this stage, by id once."""
    found = list(context.data.prompts)
    for earlier in stage.gathered:
        path = context.run.output_dir(earlier) / RED_TEAM_PROMPTS
        if path.is_file():
            found += read_prompts(str(path))
    return list({prompt.id: prompt for prompt in found}.values())


def draw_prompts(
    context: RunContext, stage: PlannedStage, prompts: Sequence[Prompt], count: int | None
) -> list[Prompt]:
    """So many of the prompts, drawn without replacement, in their order; None takes all."""
    if count is None or count >= len(prompts):
        return list(prompts)
    rng = np.random.default_rng(stage_seed(context.recipe.seed, f"{stage.id}/prompts"))
    drawn = rng.choice(len(prompts), size=count, replace=False)
    return [prompts[index] for index in sorted(drawn.tolist())]
