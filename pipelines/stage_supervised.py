"""The supervised stages of a run: SFT, and the two reward models side by side."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from typing import Any

from cluster.config.recipe import StageName
from cluster.progress import stage_progress
from cluster.seeds import stage_seed
from cluster.types import AXES, Axis
from pipelines.context import RunContext
from pipelines.reward_training import train_reward_model
from pipelines.sft import train_sft
from pipelines.supervised import FitResult
from pipelines.supervised_loop import StepReport

_PERCENT = 100


def run_sft(context: RunContext) -> None:
    """Supervised safety fine-tuning of the start model."""
    began = time.perf_counter()
    data = context.data
    output = context.begin("sft")
    start = context.start_model()
    with stage_progress("sft", total=_PERCENT) as advance:
        result = train_sft(
            start,
            data.demonstrations,
            data.held_out_demonstrations,
            context.recipe.sft,
            output,
            stage_seed(context.recipe.seed, "sft"),
            context.storage,
            _reporter(context, "sft", advance),
        )
    context.record_model("sft", {"start": start})
    context.run.complete_stage(
        "sft",
        {
            "seconds": time.perf_counter() - began,
            "fit": _fit_numbers(result.fit),
            "held_out_loss": result.held_out_loss,
            # The policy is measured where samplers run: at the beginning of PPO, or by itself.
            "evaluation": None,
        },
    )


def run_rewards(context: RunContext, axes: Sequence[Axis]) -> None:
    """Train reward models, all at the same time: neither waits for the other."""
    # Once, before two threads would make it at the same time.
    start = context.sft_model()
    name = " + ".join(f"reward_{axis}" for axis in axes)
    with (
        stage_progress(name, total=_PERCENT * len(axes)) as advance,
        ThreadPoolExecutor(max_workers=len(AXES)) as pool,
    ):
        fits = [pool.submit(_train_reward, context, axis, start, advance) for axis in axes]
        done, _ = wait(fits, return_when=FIRST_EXCEPTION)
        if any(fit.exception() for fit in done):
            context.stop.set()  # the other gives way at its next step
        for fit in sorted(done, key=fits.index):
            fit.result()


def _train_reward(
    context: RunContext, axis: Axis, start: str, advance: Callable[..., None]
) -> None:
    began = time.perf_counter()
    stage: StageName = "reward_safety" if axis == "safety" else "reward_helpfulness"
    data = context.data
    result = train_reward_model(
        start,
        axis,
        [pair for own in data.preferences.values() for pair in own],
        data.held_out_preferences[axis],
        getattr(context.recipe, stage),
        context.begin(stage),
        stage_seed(context.recipe.seed, stage),
        context.storage,
        _reporter(context, stage, advance),
    )
    context.record_model(stage, {"start": start})
    context.run.complete_stage(
        stage,
        {
            "seconds": time.perf_counter() - began,
            "fit": _fit_numbers(result.fit),
            "mix": asdict(result.mix),
            "held_out_unsafe_chosen": result.held_out_unsafe_chosen,
            "held_out_left_out": result.held_out_left_out,
            "evaluation": result.evaluation and result.evaluation.model_dump(mode="json"),
            "safety_calibration": result.safety_calibration
            and result.safety_calibration.model_dump(mode="json"),
        },
    )


def _reporter(
    context: RunContext, stage: StageName, advance: Callable[..., None]
) -> Callable[[StepReport], None]:
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
        percent = _PERCENT * step.step // step.steps
        advance(percent - shown, {"step": step.step, "loss": step.loss})
        shown = percent

    return report


def _fit_numbers(fit: FitResult) -> dict[str, Any]:
    return {
        "steps": fit.steps,
        "rows": fit.rows,
        "rows_left_out": fit.rows_left_out,
        "tokens": fit.tokens,
        "training_seconds": fit.seconds,
    }
