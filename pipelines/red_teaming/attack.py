"""The attacks of red teaming on a run's policy."""

import time
from contextlib import ExitStack
from pathlib import Path

from rayward.cluster.progress import announce, stage_progress
from rayward.cluster.records.attempts import write_attempts
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.records.red_teaming import FOUND
from rayward.cluster.records.tables import write_prompts
from rayward.cluster.runs.run_directory import write_json
from rayward.cluster.seeds import stage_seed
from rayward.pipelines.red_teaming.attacker import Attacker, open_attacker
from rayward.pipelines.red_teaming.red_team import red_team
from rayward.pipelines.red_teaming.templates import load_attack_templates
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.prompts import RED_TEAM_PROMPTS, training_prompts

REPORT = "report.json"
_ATTEMPTS = "attempts.parquet"


def attack(context: RunContext, stage: PlannedStage, directory: Path) -> None:
    """Attack the policy, and write attempts, prompts that got through and a report."""
    began = time.perf_counter()
    settings, data = context.recipe.red_teaming, context.data
    seed = stage_seed(context.recipe.seed, stage.id)
    asks_model = settings.attacker is not None
    templates = load_attack_templates(
        settings.templates, data.oracle is not None, settings.vectors, asks_model
    )
    trained = training_prompts(context, stage)
    adversarial = [prompt for prompt in trained if prompt.adversarial]
    known = [*trained, *data.validation_prompts, *data.held_out_prompts]
    session = context.sessions.session(context.policy(stage.policy), context.reward_models(stage))
    rewrites = settings.rounds * settings.seed_prompts * len(settings.vectors)
    # At most: rewrites that are known or too long are not asked.
    total = rewrites * settings.attempts * (2 if asks_model else 1)
    with ExitStack() as resources:
        attacker: Attacker | None = None
        if settings.attacker is not None:
            attacker = resources.enter_context(
                open_attacker(settings.attacker, context.recipe.ppo, templates, seed)
            )
        advance = resources.enter_context(stage_progress(f"{stage.id}: answers", total))
        on_done = context.watched(advance)
        seeds = data.seed_prompts or adversarial
        found = red_team(session, seeds, settings, templates, known, seed, attacker, on_done)
    if found.attempts:
        write_attempts(directory / _ATTEMPTS, found.attempts)
    if found.kept:
        write_prompts(str(directory / RED_TEAM_PROMPTS), found.kept)
    summary = found.summary
    document = {
        "seconds": time.perf_counter() - began,
        FOUND: summary.model_dump(mode="json"),
    }
    write_json(directory / REPORT, document)
    announce(
        f"{stage.id}: {summary.kept} prompts got through; "
        f"{summary.violations.count} violations in {summary.attempted} attempts"
    )
