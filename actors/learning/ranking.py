"""Losses of the reward models (Llama 2, section 3.2.2)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from rayward.cluster.types import Rating

MarginKind = Literal["none", "small", "large"]

# Llama 2, table 27.
_MARGINS: dict[MarginKind, dict[Rating, float]] = {
    "none": {"significantly": 0.0, "better": 0.0, "slightly": 0.0, "negligibly": 0.0},
    "small": {"significantly": 1.0, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0.0},
    "large": {"significantly": 3.0, "better": 2.0, "slightly": 1.0, "negligibly": 0.0},
}


def margin_of(rating: Rating | None, kind: MarginKind) -> float:
    """The margin of a pair's rating, in units of the score. A pair without a rating has none."""
    return 0.0 if rating is None else _MARGINS[kind][rating]


def ranking_loss(chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected - margin), per pair, in nats.

    Args:
        chosen: scores of the preferred answers, float [B].
        rejected: scores of the others, float [B].
        margins: float [B].

    Returns:
        float [B], finite for any finite scores.
    """
    return -F.logsigmoid(chosen - rejected - margins)


def auxiliary_safety_loss(scores: Tensor, is_safe: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(score) against the safety label, in nats.

    Args:
        scores: logits, float [B].
        is_safe: bool [B].

    Returns:
        float [B].
    """
    return F.binary_cross_entropy_with_logits(scores, is_safe.to(scores.dtype), reduction="none")
