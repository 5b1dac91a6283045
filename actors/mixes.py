"""Reward mixes: how a safety and a helpfulness score become one reward.

A mix is one class and one row in `MIXES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Protocol

import numpy as np

from cluster.config.mixes import MixSettings, PiecewiseMixSettings
from cluster.types import Float32Array


@dataclass(frozen=True)
class MixedReward:
    """What a mix makes of a batch of N scores."""

    score: Float32Array  # [N] logits, R_c before whitening
    decided_by: tuple[str, ...]  # [N] which reward model decided


class RewardMix(Protocol):
    """Combines the scores of one batch."""

    def combine(
        self, safety: Float32Array, helpfulness: Float32Array, adversarial: Sequence[bool]
    ) -> MixedReward:
        """Combine scores.

        Args:
            safety: [N] logits of the safety model.
            helpfulness: [N] logits of the helpfulness model.
            adversarial: [N] the prompts' tags.
        """
        ...

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold for the mix to go on as it was."""
        ...

    def restore(self, state: dict[str, float]) -> None:
        """Take up a state that `state` gave."""
        ...


class PiecewiseMix:
    """R_c = R_s where the prompt is tagged or R_s < threshold, else R_h (section 3.4.3).

    The threshold is a probability; the comparison is made on logits and is strict.
    """

    def __init__(self, settings: PiecewiseMixSettings) -> None:
        self.threshold_logit = log(settings.threshold / (1 - settings.threshold))

    def combine(
        self, safety: Float32Array, helpfulness: Float32Array, adversarial: Sequence[bool]
    ) -> MixedReward:
        """As `RewardMix.combine`."""
        by_safety = np.asarray(adversarial, dtype=bool) | (safety < self.threshold_logit)
        return MixedReward(
            score=np.where(by_safety, safety, helpfulness).astype(safety.dtype),
            decided_by=tuple("safety" if gated else "helpfulness" for gated in by_safety),
        )

    def state(self) -> dict[str, float]:
        """Nothing: the rule has no memory."""
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Accept the empty state alone."""
        if state:
            raise ValueError(f"the piecewise mix has no state, got {sorted(state)}")


MIXES = {"piecewise": PiecewiseMix}


def make_mix(settings: MixSettings) -> RewardMix:
    """The mix that the recipe names."""
    return MIXES[settings.name](settings)
