"""Who judges held-out answers: the oracle, judge models, or nobody."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from rayward.actors.scoring.label_judge import LabelJudge
from rayward.actors.scoring.reward_model import RewardModel
from rayward.cluster.ray_runtime.placement import one_actor
from rayward.cluster.records.rates import ORACLE
from rayward.cluster.types import Float32Array, Rollout
from rayward.pipelines.evaluation.evaluate import Judge, RefusalJudge, model_judge, oracle_judge
from rayward.pipelines.run.context import RunContext


def _scores_of(judge: ActorHandle, rollouts: Sequence[Rollout]) -> Float32Array:
    scores: Any = ray.get(judge.score.remote(rollouts))
    return np.asarray(scores, dtype=np.float32)


@contextmanager
def open_judge(context: RunContext, policy: str) -> Iterator[tuple[str | None, Judge | None]]:
    """Who judges: the oracle where there is one, else the judge model, else nobody."""
    settings = context.recipe.evaluation.judge
    if context.data.oracle is not None:
        yield ORACLE, oracle_judge(context.data.oracle)
    elif settings is None:
        yield None, None
    else:
        assert settings.path is not None
        own = {
            "role": "judge",
            "path": settings.path,
            "settings": settings,
            "policy_path": policy,
        }
        with one_actor("judge", RewardModel, settings.resources, own) as judge:
            yield settings.path, model_judge(partial(_scores_of, judge))


@contextmanager
def open_refusal_judge(context: RunContext) -> Iterator[RefusalJudge | None]:
    """Who tells refusals of harmless prompts; None where the oracle does, or nobody."""
    settings = context.recipe.evaluation.refusal_judge
    if settings is None or context.data.oracle is not None:
        yield None
        return
    own = {"settings": settings, "field": "evaluation.refusal_judge"}
    with one_actor("refusal_judge", LabelJudge, settings.resources, own) as judge:

        def refuses(texts: Sequence[str]) -> list[bool]:
            verdicts: Any = ray.get(judge.has_label.remote(list(texts)))
            return [bool(one) for one in verdicts]

        yield RefusalJudge(settings.path, refuses)
