"""TruthfulQA and ToxiGen of a policy, where the data has them and the recipe wants them."""

from typing import Any

from rayward.cluster.progress import stage_progress
from rayward.cluster.records.samples import write_samples
from rayward.cluster.sampler import Sampler
from rayward.pipelines.evaluation.toxigen import (
    choose_prompts,
    measure_toxigen,
    open_toxicity_judge,
)
from rayward.pipelines.evaluation.truthfulqa import (
    choose_questions,
    measure_truthfulqa,
    open_answer_judge,
)
from rayward.pipelines.run.context import RunContext


def measure_benchmarks(
    context: RunContext, session: Sampler, policy: str
) -> dict[str, dict[str, Any] | None]:
    """The results by the benchmark's name; None for one that is not measured.

    Answers are kept beside those on held-out prompts: samples/POLICY-truthfulqa.parquet.
    """
    return {
        "truthfulqa": _truthfulqa(context, session, policy),
        "toxigen": _toxigen(context, session, policy),
    }


def _truthfulqa(context: RunContext, session: Sampler, policy: str) -> dict[str, Any] | None:
    settings, questions = context.recipe.evaluation.truthfulqa, context.data.truthfulqa
    if settings is None or not questions:
        return None
    name = f"{policy}-truthfulqa"
    total = len(choose_questions(questions, settings))
    with (
        open_answer_judge("truth", settings.truth_judge) as truth,
        open_answer_judge("info", settings.info_judge) as info,
        stage_progress(f"evaluation/{name}", total) as advance,
    ):
        result, samples = measure_truthfulqa(
            session,
            questions,
            settings,
            truth,
            info,
            context.recipe.seed,
            context.watched(advance),
        )
    write_samples(context.run.samples_path(name), samples)
    return result.model_dump(mode="json")


def _toxigen(context: RunContext, session: Sampler, policy: str) -> dict[str, Any] | None:
    settings, prompts = context.recipe.evaluation.toxigen, context.data.toxigen
    if settings is None or not prompts:
        return None
    name = f"{policy}-toxigen"
    total = len(choose_prompts(prompts, settings))
    with (
        open_toxicity_judge(settings.judge) as judge,
        stage_progress(f"evaluation/{name}", total) as advance,
    ):
        result, samples = measure_toxigen(
            session,
            prompts,
            settings,
            judge,
            context.recipe.seed,
            context.watched(advance),
        )
    write_samples(context.run.samples_path(name), samples)
    return result.model_dump(mode="json")
