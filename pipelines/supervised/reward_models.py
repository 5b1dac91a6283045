"""Training a run's reward model, and completing its stage."""

import time
from dataclasses import asdict

from rayward.cluster.config.supervised import RewardTrainingSettings
from rayward.cluster.progress import stage_progress
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.seeds import stage_seed
from rayward.cluster.types import Axis
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.supervised.policies import PERCENT, fit_numbers, reporter
from rayward.pipelines.supervised.reward_model import train_reward_model


def run_reward_model(
    context: RunContext, stage: PlannedStage, axis: Axis, settings: RewardTrainingSettings
) -> None:
    """Train the reward model of an axis, and measure it on held-out pairs."""
    began = time.perf_counter()
    context.sessions.close()
    start, data = context.policy(stage.policy), context.data
    with stage_progress(stage.id, total=PERCENT) as advance:
        result = train_reward_model(
            start,
            axis,
            [pair for own in data.preferences.values() for pair in own],
            data.held_out_preferences[axis],
            settings,
            context.begin(stage.id),
            stage_seed(context.recipe.seed, stage.id),
            context.storage,
            reporter(context, stage.id, advance),
        )
    context.record_model(stage.id, {"start": start})
    context.complete(
        stage.id,
        {
            "seconds": time.perf_counter() - began,
            "fit": fit_numbers(result.fit),
            "mix": asdict(result.mix),
            "held_out_unsafe_chosen": result.held_out_unsafe_chosen,
            "held_out_left_out": result.held_out_left_out,
            "evaluation": result.evaluation and result.evaluation.model_dump(mode="json"),
            "safety_calibration": result.safety_calibration
            and result.safety_calibration.model_dump(mode="json"),
        },
    )
