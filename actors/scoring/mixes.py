"""Reward mixes: how a safety and a helpfulness score become one reward.

A mix is one class and one row in `MIXES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any, Protocol

import numpy as np

from rayward.cluster.config.mixes import (
    LagrangianMixSettings,
    MixSettings,
    PiecewiseMixSettings,
    WeightedSumMixSettings,
)
from rayward.cluster.types import Float32Array


@dataclass(frozen=True)
class MixedReward:
    """What a mix makes of a batch of N scores."""

    score: Float32Array  # [N] logits, R_c before whitening
    safety_weight: Float32Array  # [N] of the safety logit in the score
    helpfulness_weight: Float32Array  # [N] of the helpfulness logit in the score

    @property
    def decided_by(self) -> tuple[str, ...]:
        """[N]: which reward model decided, or "both"."""
        return tuple(
            "safety" if not helpfulness else "helpfulness" if not safety else "both"
            for safety, helpfulness in zip(self.safety_weight, self.helpfulness_weight, strict=True)
        )


class RewardMix(Protocol):
    """Combines the scores of one batch."""

    def combine(
        self, safety: Float32Array, helpfulness: Float32Array, adversarial: Sequence[bool]
    ) -> MixedReward:
        """Combine scores; changes nothing.

        Args:
            safety: [N] logits of the safety model.
            helpfulness: [N] logits of the helpfulness model.
            adversarial: [N] the prompts' tags.
        """
        ...

    def learn(self, safety: Float32Array) -> dict[str, float]:
        """Adjust to the safety logits, [N], of a batch that was just trained on.

        Returns:
            What is worth logging of the mix, as it was when it combined that batch.
        """
        ...

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold for the mix to go on as it was."""
        ...

    def restore(self, state: dict[str, float]) -> None:
        """Take up a state that `state` gave."""
        ...


class _Memoryless:
    """What mixes have in common that are the same at every step."""

    def learn(self, safety: Float32Array) -> dict[str, float]:
        """Nothing: the rule is fixed."""
        return {}

    def state(self) -> dict[str, float]:
        """Nothing: the rule has no memory."""
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Accept the empty state alone."""
        if state:
            raise ValueError(f"this mix has no state, got {sorted(state)}")


class PiecewiseMix(_Memoryless):
    """R_c = R_s where the prompt is tagged or R_s < threshold, else R_h (section 3.4.3).

    The threshold is a probability; the comparison is made on logits and is strict.
    """

    def __init__(self, settings: PiecewiseMixSettings) -> None:
        self.threshold_logit = log(settings.threshold / (1 - settings.threshold))

    def combine(
        self, safety: Float32Array, helpfulness: Float32Array, adversarial: Sequence[bool]
    ) -> MixedReward:
        """As `RewardMix.combine`; one model decides, and has all the weight."""
        by_safety = np.asarray(adversarial, dtype=bool) | (safety < self.threshold_logit)
        return MixedReward(
            score=np.where(by_safety, safety, helpfulness).astype(safety.dtype),
            safety_weight=by_safety.astype(np.float32),
            helpfulness_weight=(~by_safety).astype(np.float32),
        )


class WeightedSumMix(_Memoryless):
    """R_c = w_s R_s + w_h R_h, in logits, on every prompt."""

    def __init__(self, settings: WeightedSumMixSettings) -> None:
        self._weights = settings.safety_weight, settings.helpfulness_weight

    def combine(
        self, safety: Float32Array, helpfulness: Float32Array, adversarial: Sequence[bool]
    ) -> MixedReward:
        """As `RewardMix.combine`; the tags say nothing here."""
        return _weighted(safety, helpfulness, *self._weights)


class LagrangianMix:
    """Most helpfulness under a limit d on the mean cost (Dai et al. 2023, "Safe RLHF", section 3).

        max over the policy, min over lambda >= 0:  E[R_h] - lambda (E[cost] - d)

    After each batch log lambda moves by learning_rate * lambda * (mean cost - d), as in that paper,
    and is clamped. The cost that is limited is the probability of being unsafe,
    1 - sigmoid(R_s), so that d is a share of answers. The policy is moved by the logits, whose
    order is the same and which do not saturate: R_c = (R_h + lambda R_s) / (1 + lambda).
    """

    def __init__(self, settings: LagrangianMixSettings) -> None:
        self._settings = settings
        self._log_multiplier = log(settings.initial_multiplier)

    @property
    def multiplier(self) -> float:
        """Lambda."""
        return exp(self._log_multiplier)

    def combine(
        self, safety: Float32Array, helpfulness: Float32Array, adversarial: Sequence[bool]
    ) -> MixedReward:
        """As `RewardMix.combine`; the tags say nothing here."""
        whole = 1 + self.multiplier
        return _weighted(safety, helpfulness, self.multiplier / whole, 1 / whole)

    def learn(self, safety: Float32Array) -> dict[str, float]:
        """One step of the ascent on log lambda; returns lambda before it, and the mean cost."""
        before = self.multiplier
        cost = float(np.mean(np.exp(-np.logaddexp(0, safety.astype(np.float64)))))
        self.ascend(cost)
        return {"reward/lagrange_multiplier": before, "reward/cost/mean": cost}

    def ascend(self, mean_cost: float) -> None:
        """Move log lambda by how far the mean cost is over its limit."""
        settings = self._settings
        excess = mean_cost - settings.cost_limit
        moved = self._log_multiplier + settings.learning_rate * self.multiplier * excess
        low, high = log(settings.min_multiplier), log(settings.max_multiplier)
        self._log_multiplier = min(max(moved, low), high)

    def state(self) -> dict[str, float]:
        """The logarithm of lambda."""
        return {"log_multiplier": self._log_multiplier}

    def restore(self, state: dict[str, float]) -> None:
        """Take up lambda where it was."""
        self._log_multiplier = state["log_multiplier"]


def _weighted(
    safety: Float32Array,
    helpfulness: Float32Array,
    safety_weight: float,
    helpfulness_weight: float,
) -> MixedReward:
    return MixedReward(
        score=(safety_weight * safety + helpfulness_weight * helpfulness).astype(safety.dtype),
        safety_weight=np.full(len(safety), safety_weight, dtype=np.float32),
        helpfulness_weight=np.full(len(safety), helpfulness_weight, dtype=np.float32),
    )


MIXES: dict[str, Callable[[Any], RewardMix]] = {
    "piecewise": PiecewiseMix,
    "weighted_sum": WeightedSumMix,
    "lagrangian": LagrangianMix,
}


def make_mix(settings: MixSettings) -> RewardMix:
    """The mix that the recipe names."""
    return MIXES[settings.name](settings)
