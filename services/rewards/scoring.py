"""Scoring by the reward models that are served: ask, mix, and hold to the safety gate."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from rayward.actors.scoring.mixes import MixedReward, make_mix
from rayward.cluster.config.serving import RewardServiceSettings
from rayward.cluster.errors import InputError, UnscoredError
from rayward.cluster.types import Axis
from rayward.services.http.backends import Backends
from rayward.services.http.errors import unavailable
from rayward.services.http.prometheus import count_gate
from rayward.services.rewards.calls import Item, ModelScores, Refusal


@dataclass(frozen=True)
class Scored:
    """What the reward models say of N items."""

    models: Mapping[Axis, ModelScores]
    """Of the models that were asked."""
    mixed: MixedReward | None
    """The rewards by the configured mix; None unless both models were asked."""
    under_gate: tuple[bool, ...] | None
    """[N]: whether the probability of being safe is below the gate; None without safety model."""


async def score_items(
    backends: Backends, items: Sequence[Item], axes: Sequence[Axis], deterministic: bool = False
) -> Scored:
    """Score items by the models of `axes`, which are served, at the same time.

    Raises:
        InputError: names the item; it is too long, or cannot be written by the chat template.
        TimeoutError: it took longer than a request may.
        UnscoredError: a score could not be had.
        ApiError: 503; a model has no place for them, or is starting or stopping.
        RayActorError: a model died.
    """
    try:
        answers = await _ask(backends, items, axes, deterministic)
    except (BackPressureError, DeploymentUnavailableError) as error:
        # For these two Serve puts handlers of its own in place of an application's.
        reason = f"a reward model is busy or restarting ({type(error).__name__})"
        raise unavailable(reason, backends.settings.http.retry_after_s) from error
    settings = backends.settings.reward
    assert settings is not None
    models = dict(zip(axes, answers, strict=True))
    return _judged(settings, models, [item.adversarial for item in items])


async def _ask(
    backends: Backends, items: Sequence[Item], axes: Sequence[Axis], deterministic: bool
) -> list[ModelScores]:
    calls = [backends.reward[axis].answer.remote(items, deterministic) for axis in axes]
    answers: list[ModelScores] | None = None
    try:
        async with asyncio.timeout(backends.settings.http.request_timeout_s):
            answers = await asyncio.gather(*map(_scores, calls))
    finally:
        # Where one model refuses, what the others would say is of no use.
        if answers is None:
            for call in calls:
                call.cancel()
    return answers


async def _scores(call: Awaitable[ModelScores | Refusal]) -> ModelScores:
    answer = await call
    if isinstance(answer, Exception):
        raise answer
    return answer


def served_axes(backends: Backends, asked: Sequence[Axis] | None) -> list[Axis]:
    """The models that were asked for, or all, in the order in which they are served.

    Raises:
        InputError: names `models`; one is not served here.
    """
    if asked is None:
        return list(backends.reward)
    for index, axis in enumerate(asked):
        if axis not in backends.reward:
            raise InputError(f"models.{index}", axis, f"one of {list(backends.reward)}")
    return [axis for axis in backends.reward if axis in asked]


def require_count(backends: Backends, count: int, field: str) -> None:
    """Refuse more items in one request than may be, and none at all.

    Raises:
        InputError: names `field`.
    """
    assert backends.settings.reward is not None
    most = backends.settings.reward.max_items
    if not 1 <= count <= most:
        raise InputError(field, f"{count} items", f"1 to {most} items")


def _judged(
    settings: RewardServiceSettings, models: Mapping[Axis, ModelScores], tags: Sequence[bool]
) -> Scored:
    logits = {
        axis: np.array([item.logit for item in scores.items], dtype=np.float32)
        for axis, scores in models.items()
    }
    under_gate = None
    if "safety" in logits:
        # On logits and strictly, as the mixes compare.
        gate = log(settings.gate / (1 - settings.gate))
        under_gate = tuple((logits["safety"] < gate).tolist())
        count_gate(sum(under_gate), len(under_gate))
    mixed = None
    if len(logits) == 2:
        mixed = make_mix(settings.mix).combine(logits["safety"], logits["helpfulness"], tags)
        if not np.isfinite(mixed.score).all():
            raise UnscoredError("the mixed reward is not finite")
    return Scored(models, mixed, under_gate)
