"""Measuring the policies of a run, each on the same held-out prompts, as soon as it can be done."""

import time
from typing import Any

from rayward.actors.scoring.mixes import make_mix
from rayward.cluster.progress import announce, stage_progress
from rayward.cluster.records.plan import (
    PREVIOUS,
    evaluation_of,
    make_plan,
    measured_policies,
    yardsticks,
)
from rayward.cluster.records.samples import write_samples
from rayward.pipelines.evaluation.benchmarks import measure_benchmarks
from rayward.pipelines.evaluation.evaluate import choose_held_out, evaluate
from rayward.pipelines.evaluation.judges import open_judge, open_refusal_judge
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.encoding import encode_prompts


def due(context: RunContext) -> list[str]:
    """The policies that are there and can be measured now, in order.

    A policy waits for the reward models that the first round will make: they score every policy.
    """
    recipe = context.recipe
    if any(not is_done(context, stage) for stage in yardsticks(recipe).values()):
        return []
    made = {stage.id for stage in make_plan(recipe)}
    policies = measured_policies(recipe)
    if recipe.gates is not None and recipe.gates.previous is not None:
        policies = [PREVIOUS, *policies]
    return [
        policy
        for policy in policies
        if (policy not in made or is_done(context, policy))
        and not is_done(context, evaluation_of(policy))
    ]


def is_done(context: RunContext, stage: str) -> bool:
    """Whether a stage or measurement is finished, with what goes in today."""
    document = context.run.stage_document(stage)
    return document is not None and document.get("artifact") == context.artifacts[stage].name


def measure(context: RunContext, policy: str) -> None:
    """Measure one policy, and keep its answers."""
    began = time.perf_counter()
    recipe, settings = context.recipe, context.recipe.evaluation
    context.run.stage_path(evaluation_of(policy)).unlink(missing_ok=True)
    session = context.sessions.session(context.policy(policy), context.reward_models())
    held_out, too_long = encode_prompts(
        session.tokenizer,
        context.data.held_out_prompts,
        settings.sampling.max_prompt_tokens,
        "evaluation.sampling.max_prompt_tokens",
    )
    chosen = choose_held_out(held_out, settings)
    name = evaluation_of(policy)
    with (
        open_judge(context, session.model) as (judge_name, judge),
        open_refusal_judge(context) as refusal_judge,
        stage_progress(name, len(chosen)) as advance,
    ):
        on_done = context.watched(advance)
        evaluation, samples = evaluate(
            session,
            chosen,
            settings.sampling,
            recipe.seed,
            judge_name,
            judge,
            refusal_judge,
            make_mix(recipe.ppo.mix),
            on_done,
        )
    if too_long:
        announce(f"{name}: {too_long} held-out prompts are too long and left out")
    write_samples(context.run.samples_path(policy), samples)
    result: dict[str, Any] = {
        "prompts_too_long": too_long,
        "evaluation": evaluation.model_dump(mode="json"),
        **measure_benchmarks(context, session, policy),
    }
    context.complete(name, {"seconds": time.perf_counter() - began, **result})
