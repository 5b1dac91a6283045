"""The samples of rejection sampling: K answers to each prompt, of which the best is kept."""

import time
from pathlib import Path

from rayward.actors.scoring.mixes import make_mix
from rayward.cluster.errors import InputError
from rayward.cluster.progress import announce, stage_progress
from rayward.cluster.records.best_samples import (
    BestSample,
    find_best,
    read_best,
    write_best,
)
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.runs.run_directory import write_json
from rayward.cluster.seeds import stage_seed
from rayward.pipelines.rejection_sampling.best_of_k import (
    best_of_k,
    keep_earlier,
    score_again,
    search_temperature,
)
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.encoding import encode_prompts
from rayward.pipelines.run.prompts import draw_prompts, training_prompts

REPORT = "report.json"


def sample_best(context: RunContext, stage: PlannedStage, directory: Path) -> None:
    """Draw K answers to each prompt, and write the best ones and a report to a directory."""
    began = time.perf_counter()
    settings = context.recipe.rejection_sampling
    seed = stage_seed(context.recipe.seed, stage.id)
    session = context.sessions.session(context.policy(stage.policy), context.reward_models(stage))
    mix = make_mix(context.recipe.ppo.mix)
    prompts, too_long = encode_prompts(
        session.tokenizer,
        draw_prompts(context, stage, training_prompts(context, stage), settings.prompts),
        settings.sampling.max_prompt_tokens,
        "rejection_sampling.sampling.max_prompt_tokens",
    )
    earlier, held_out = _earlier(context, stage)
    k, search = settings.samples_per_prompt, settings.temperature_search
    tried = (
        0 if search is None else len(search.temperatures) * min(search.prompts, len(prompts)) * k
    )
    with stage_progress(f"{stage.id}: samples", tried + len(prompts) * k + len(earlier)) as advance:
        on_done = context.watched(advance)
        temperature, trials = search_temperature(session, prompts, settings, mix, seed, on_done)
        found = best_of_k(session, prompts, settings, temperature, mix, stage.round, seed, on_done)
        kept = keep_earlier(earlier, score_again(session, earlier, mix, on_done))
    if not found.best:
        raise InputError(
            "rejection_sampling.sampling.max_response_tokens",
            settings.sampling.max_response_tokens,
            f"answers that come to their end; of {found.samples} {found.samples_cut} were cut",
        )
    write_best(directory, [*kept, *found.best])
    write_json(
        directory / REPORT,
        {
            "sampling_seconds": time.perf_counter() - began,
            "samples_per_prompt": k,
            "temperature": temperature,
            "temperature_search": [trial.model_dump() for trial in trials],
            "prompts": len(prompts),
            "prompts_too_long": too_long,
            "prompts_without_answer": found.prompts_without,
            "samples": found.samples,
            "samples_cut": found.samples_cut,
            "best": len(found.best),
            "earlier_best": len(kept),
            "earlier_held_out": held_out,
            "curves": {kind: curve.model_dump(mode="json") for kind, curve in found.curves.items()},
        },
    )
    announce(f"{stage.id}: best of {k} for {len(found.best)} prompts, {len(kept)} from before")


def _earlier(context: RunContext, stage: PlannedStage) -> tuple[list[BestSample], int]:
    """The best samples of earlier rounds, of this run and of those that the recipe names.

    Returns:
        Those that may be learned, and how many answer a prompt that this run holds out.
    """
    found = [row for given in context.recipe.rejection_sampling.earlier for row in find_best(given)]
    for one in stage.gathered:
        found += read_best(context.run.output_dir(one))
    data = context.data
    apart = {one.messages for one in (*data.held_out_prompts, *data.validation_prompts)}
    kept = [row for row in found if row.prompt.messages not in apart]
    return kept, len(found) - len(kept)
