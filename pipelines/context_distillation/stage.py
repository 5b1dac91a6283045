"""The context distillation stage of a run: answer twice, keep what is safer, fit."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from rayward.cluster.errors import InputError
from rayward.cluster.progress import announce, stage_progress
from rayward.cluster.records.distilled import read_distilled, write_distilled
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.runs.run_directory import write_json
from rayward.cluster.seeds import stage_seed
from rayward.pipelines.context_distillation.distil import distil
from rayward.pipelines.context_distillation.preprompts import load_preprompts
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.prompts import draw_prompts, training_prompts
from rayward.pipelines.supervised.stage import fit_policy, keep_policy, replay

_REPORT = "report.json"


def run_context_distillation(context: RunContext, stage: PlannedStage) -> None:
    """Find safer answers, unless an earlier session did, and fit the policy to them.

    Where none is safer the originals stay, and so does the policy.
    """
    directory = context.output(stage.id, partial(_sample, context, stage))
    numbers: dict[str, Any] = json.loads((directory / _REPORT).read_bytes())
    kept = [one.demonstration for one in read_distilled(directory) if one.kept]
    if not kept:
        announce(f"{stage.id}: nothing to learn; the policy stays as it is")
        keep_policy(context, stage, numbers | {"benign_replayed": 0}, numbers["sampling_seconds"])
        return
    settings = context.recipe.context_distillation
    benign = replay(context, stage, round(settings.benign_replay * len(kept)))
    numbers |= {"benign_replayed": len(benign)}
    fit_policy(context, stage, [*kept, *benign], [], numbers, numbers["sampling_seconds"])


def _sample(context: RunContext, stage: PlannedStage, directory: Path) -> None:
    began = time.perf_counter()
    settings = context.recipe.context_distillation
    preprompts = load_preprompts(settings.preprompts, context.data.oracle is not None)
    session = context.sessions.session(context.policy(stage.policy), context.reward_models(stage))
    adversarial = [one for one in training_prompts(context, stage) if one.adversarial]
    prompts = draw_prompts(context, stage, adversarial, settings.prompts)
    total = len(prompts) * (1 + settings.preprompts_per_prompt)
    with stage_progress(f"{stage.id}: samples", total) as advance:
        on_done = context.watched(advance)
        seed = stage_seed(context.recipe.seed, stage.id)
        samples, report = distil(session, prompts, preprompts, settings, seed, on_done)
    if not samples:
        raise InputError(
            "context_distillation.sampling.max_response_tokens",
            settings.sampling.max_response_tokens,
            f"answers behind a preprompt that come to their end; {report.cut} were cut",
        )
    write_distilled(directory, samples)
    seconds = time.perf_counter() - began
    document = {"sampling_seconds": seconds, "distillation": report.model_dump(mode="json")}
    write_json(directory / _REPORT, document)
    announce(f"{stage.id}: {report.kept.count} of {report.kept.total} answers are safer and kept")
