"""The supervised stages of a run: SFT, safety SFT, and the two reward models side by side."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from typing import Any

import numpy as np

from actors.models import load_causal_lm, load_tokenizer, save_model
from cluster.atomic import new_directory
from cluster.config.recipe import REWARD_STAGES
from cluster.config.supervised import SFTSettings
from cluster.progress import stage_progress
from cluster.seeds import stage_seed
from cluster.types import AXES, Axis, Demonstration
from pipelines.best_samples import read_best, unique_demonstrations
from pipelines.context import RunContext
from pipelines.plan import PlannedStage
from pipelines.reward_training import train_reward_model
from pipelines.sft import train_sft
from pipelines.supervised import FitResult
from pipelines.supervised_loop import StepReport

_PERCENT = 100


def run_sft(context: RunContext, stage: PlannedStage) -> None:
    """Supervised fine-tuning, from the second round on with the best samples gathered so far."""
    gathered = [
        row.demonstration
        for earlier in stage.gathered
        for row in read_best(context.run.output_dir(earlier))
    ]
    shown = unique_demonstrations([*context.data.demonstrations, *gathered])
    numbers = {"demonstrations": len(context.data.demonstrations), "gathered": len(gathered)}
    fit_policy(context, stage, shown, context.data.held_out_demonstrations, numbers)


def run_safety_sft(context: RunContext, stage: PlannedStage) -> None:
    """Supervised safety fine-tuning: safe answers to adversarial prompts among benign ones."""
    safe = context.data.safety_demonstrations
    benign = replay(context, stage, round(context.recipe.safety_sft.benign_replay * len(safe)))
    numbers = {"safety_demonstrations": len(safe), "benign_replayed": len(benign)}
    fit_policy(context, stage, [*safe, *benign], [], numbers)


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
    demonstrations: Sequence[Demonstration],
    held_out: Sequence[Demonstration],
    numbers: dict[str, Any],
    seconds_before: float = 0.0,
) -> None:
    """Fit a stage's policy to demonstrations, and complete the stage.

    Args:
        context: the run.
        stage: whose policy it will be.
        demonstrations: what is imitated.
        held_out: what the loss is measured on.
        numbers: what else came out of the stage.
        seconds_before: what the stage took before the fit.
    """
    began = time.perf_counter()
    settings = getattr(context.recipe, stage.name)
    section = stage.name if isinstance(settings, SFTSettings) else f"{stage.name}.fit"
    fit: SFTSettings = settings if isinstance(settings, SFTSettings) else settings.fit
    context.sessions.close()
    output = context.begin(stage.id)
    start = context.policy(stage.policy)
    with stage_progress(stage.id, total=_PERCENT) as advance:
        result = train_sft(
            start,
            demonstrations,
            held_out,
            fit,
            output,
            stage_seed(context.recipe.seed, stage.id),
            context.storage,
            _reporter(context, stage.id, advance),
            section,
        )
    context.record_model(stage.id, {"start": start})
    context.complete(
        stage.id,
        {
            "seconds": seconds_before + time.perf_counter() - began,
            "fit": _fit_numbers(result.fit),
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


def run_rewards(context: RunContext, stages: Sequence[PlannedStage]) -> None:
    """Train reward models, all at the same time: neither waits for the other."""
    context.sessions.close()
    own = [(stage, axis) for axis in AXES for stage in stages if stage.name == REWARD_STAGES[axis]]
    # Once, before two threads would make it at the same time.
    start = context.policy(stages[0].policy)
    name = " + ".join(stage.id for stage in stages)
    with (
        stage_progress(name, total=_PERCENT * len(stages)) as advance,
        ThreadPoolExecutor(max_workers=len(AXES)) as pool,
    ):
        fits = [
            pool.submit(_train_reward, context, stage, axis, start, advance) for stage, axis in own
        ]
        done, _ = wait(fits, return_when=FIRST_EXCEPTION)
        if any(fit.exception() for fit in done):
            context.stop.set()  # the other gives way at its next step
        for fit in sorted(done, key=fits.index):
            fit.result()


def _train_reward(
    context: RunContext, stage: PlannedStage, axis: Axis, start: str, advance: Callable[..., None]
) -> None:
    began = time.perf_counter()
    data = context.data
    result = train_reward_model(
        start,
        axis,
        [pair for own in data.preferences.values() for pair in own],
        data.held_out_preferences[axis],
        getattr(context.recipe, stage.name),
        context.begin(stage.id),
        stage_seed(context.recipe.seed, stage.id),
        context.storage,
        _reporter(context, stage.id, advance),
    )
    context.record_model(stage.id, {"start": start})
    context.complete(
        stage.id,
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
    context: RunContext, stage: str, advance: Callable[..., None]
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
