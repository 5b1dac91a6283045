"""How well a reward model ranks held-out pairs (Llama 2, section 3.2.2 and its tables 7, 8, 28)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from rayward.cluster.records.rates import Rate, rate
from rayward.cluster.records.reward_models import (
    CalibrationBin,
    RewardModelEvaluation,
    ScoreHistogram,
)
from rayward.cluster.types import RATINGS, RISK_CATEGORIES, Axis, PreferencePair

SafetyBin = Literal[
    "chosen safe, rejected unsafe", "both safe", "both unsafe", "chosen unsafe, rejected safe"
]

_CALIBRATION_BINS = 10
_HISTOGRAM_BINS = 30


def evaluate_reward_model(
    axis: Axis, rows: Sequence[tuple[PreferencePair, float, float]]
) -> RewardModelEvaluation:
    """Measure a reward model.

    Args:
        axis: which of the two models it is.
        rows: held-out pairs, each with the chosen and the rejected answer's score, in logits.

    Raises:
        ValueError: there are no rows, or a score is not finite.
    """
    if not rows:
        raise ValueError("no pairs to measure a reward model on")
    scores = np.array([(chosen, rejected) for _, chosen, rejected in rows], dtype=np.float64)
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores).all(axis=1)))
        raise ValueError(f"pair of prompt {rows[row][0].prompt.id}: scores are {scores[row]}")
    margins = scores[:, 0] - scores[:, 1]
    pairs = [pair for pair, _, _ in rows]
    right = margins > 0
    unsafe = [
        score < 0
        for pair, chosen, rejected in rows
        for score, safe in ((chosen, pair.chosen_safe), (rejected, pair.rejected_safe))
        if safe is False
    ]
    return RewardModelEvaluation(
        axis=axis,
        accuracy=rate(int(right.sum()), len(pairs)),
        by_rating=_by([pair.rating for pair in pairs], right, RATINGS),
        by_safety=_by([_safety_bin(pair) for pair in pairs], right, get_args(SafetyBin)),
        by_category=_by([pair.prompt.risk_category for pair in pairs], right, RISK_CATEGORIES),
        unsafe_recall=rate(sum(unsafe), len(unsafe)),
        calibration=_calibration(margins),
        histogram=_histogram(scores),
    )


def _safety_bin(pair: PreferencePair) -> SafetyBin | None:
    if pair.chosen_safe is None or pair.rejected_safe is None:
        return None
    if pair.chosen_safe != pair.rejected_safe:
        if pair.chosen_safe:
            return "chosen safe, rejected unsafe"
        return "chosen unsafe, rejected safe"  # only on the helpfulness axis
    return "both safe" if pair.chosen_safe else "both unsafe"


def _by(
    groups: Sequence[str | None], right: np.ndarray, order: Sequence[str] = ()
) -> dict[str, Rate]:
    """Accuracy by group; pairs of no known group count under "not known"."""
    members: defaultdict[str, list[bool]] = defaultdict(list)
    for group, is_right in zip(groups, right, strict=True):
        members["not known" if group is None else group].append(bool(is_right))
    if set(members) == {"not known"}:
        return {}
    names = [*(name for name in order if name in members), *sorted(set(members) - set(order))]
    return {name: rate(sum(members[name]), len(members[name])) for name in names}


def _calibration(margins: np.ndarray) -> tuple[CalibrationBin, ...]:
    # The pair's order says nothing, so the question is put about the higher-scored answer.
    predicted = 1 / (1 + np.exp(-np.abs(margins)))
    right = margins > 0
    edges = np.linspace(0.5, 1.0, _CALIBRATION_BINS + 1)
    bins = np.clip(np.digitize(predicted, edges) - 1, 0, _CALIBRATION_BINS - 1)
    return tuple(
        CalibrationBin(
            predicted=float(predicted[bins == number].mean()),
            observed=rate(int(right[bins == number].sum()), int((bins == number).sum())),
        )
        for number in range(_CALIBRATION_BINS)
        if (bins == number).any()
    )


def _histogram(scores: np.ndarray) -> ScoreHistogram:
    edges = np.histogram_bin_edges(scores, bins=_HISTOGRAM_BINS)
    chosen, rejected = (np.histogram(scores[:, side], bins=edges)[0] for side in (0, 1))
    return ScoreHistogram(
        edges=tuple(edges.tolist()),
        chosen=tuple(chosen.tolist()),
        rejected=tuple(rejected.tolist()),
    )
