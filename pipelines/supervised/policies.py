"""Fitting a run's policy to demonstrations, for every stage that does; and what a fit reports."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rayward.actors.models.loading import load_causal_lm, load_tokenizer, save_model
from rayward.cluster.atomic import new_directory
from rayward.cluster.config.supervised import SFTSettings
from rayward.cluster.progress import stage_progress
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.seeds import stage_seed
from rayward.cluster.types import Demonstration
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.supervised.fit import FitResult
from rayward.pipelines.supervised.loop import StepReport
from rayward.pipelines.supervised.sft import train_sft

PERCENT = 100


def replay(context: RunContext, stage: PlannedStage, count: int) -> list[Demonstration]:
    """Benign demonstrations, drawn without replacement, so that helpfulness holds in a fit on
    adversarial prompts; all of them where there are not so many."""
    benign = [one for one in context.data.demonstrations if not one.prompt.adversarial]
    rng = np.random.default_rng(stage_seed(context.recipe.seed, f"{stage.id}/replay"))
    drawn = rng.choice(len(benign), size=min(count, len(benign)), replace=False)
    return [benign[index] for index in sorted(drawn.tolist())]


def fit_policy(
    context: RunContext,
    stage: PlannedStage,
    section: str,
    settings: SFTSettings,
    demonstrations: Sequence[Demonstration],
    held_out: Sequence[Demonstration],
    numbers: dict[str, Any],
    seconds_before: float = 0.0,
) -> None:
    """Fit a stage's policy to demonstrations, and complete the stage.

    Args:
        context: the run.
        stage: whose policy it will be.
        section: where the settings are in the recipe.
        settings: of the fit.
        demonstrations: what is imitated.
        held_out: what the loss is measured on.
        numbers: what else came out of the stage.
        seconds_before: what the stage took before the fit.
    """
    began = time.perf_counter()
    context.sessions.close()
    output = context.begin(stage.id)
    start = context.policy(stage.policy)
    with stage_progress(stage.id, total=PERCENT) as advance:
        result = train_sft(
            start,
            demonstrations,
            held_out,
            settings,
            output,
            stage_seed(context.recipe.seed, stage.id),
            context.storage,
            reporter(context, stage.id, advance),
            section,
        )
    context.record_model(stage.id, {"start": start})
    context.complete(
        stage.id,
        {
            "seconds": seconds_before + time.perf_counter() - began,
            "fit": fit_numbers(result.fit),
            "held_out_loss": result.held_out_loss,
            **numbers,
        },
    )


def keep_policy(
    context: RunContext, stage: PlannedStage, numbers: dict[str, Any], seconds: float
) -> None:
    """Complete a stage that has nothing to fit to, with the policy that it started from."""
    context.sessions.close()
    output, start = context.begin(stage.id), context.policy(stage.policy)
    with new_directory(output) as partial:
        save_model(load_causal_lm(start, "float32"), load_tokenizer(start), partial)
    context.record_model(stage.id, {"start": start})
    context.complete(stage.id, {"seconds": seconds, "fit": None, "held_out_loss": None, **numbers})


def reporter(
    context: RunContext, stage: str, advance: Callable[..., None]
) -> Callable[[StepReport], None]:
    """Logs each step of a fit, shows progress in per cent, and gives way to a request to stop."""
    shown = 0

    def report(step: StepReport) -> None:
        nonlocal shown
        context.check_stop()
        numbers = {
            "train/loss": step.loss,
            "train/learning_rate": step.learning_rate,
            "train/grad_norm": step.gradient_norm,
            "perf/throughput": step.tokens_per_second,
            **{f"train/{name}": value for name, value in step.measures.items()},
        }
        context.log(step.step, stage, numbers)
        percent = PERCENT * step.step // step.steps
        advance(percent - shown, {"step": step.step, "loss": step.loss})
        shown = percent

    return report


def fit_numbers(fit: FitResult) -> dict[str, Any]:
    """What a fit adds to its stage's result; `training_seconds` are seconds."""
    return {
        "steps": fit.steps,
        "rows": fit.rows,
        "rows_left_out": fit.rows_left_out,
        "tokens": fit.tokens,
        "training_seconds": fit.seconds,
    }
