"""The samples of context distillation: answers with and without a safety preprompt."""

import time
from pathlib import Path

from rayward.cluster.errors import InputError
from rayward.cluster.progress import announce, stage_progress
from rayward.cluster.records.distilled import write_distilled
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.runs.run_directory import write_json
from rayward.cluster.seeds import stage_seed
from rayward.pipelines.context_distillation.distil import distil
from rayward.pipelines.context_distillation.preprompts import load_preprompts
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.prompts import draw_prompts, training_prompts

REPORT = "report.json"


def sample_distilled(context: RunContext, stage: PlannedStage, directory: Path) -> None:
    """Answer with and without a preprompt, and write what is kept and a report to a directory."""
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
    write_json(directory / REPORT, document)
    announce(f"{stage.id}: {report.kept.count} of {report.kept.total} answers are safer and kept")
