"""How far the safety reward model's probability can be taken at its word.

The ranking of pairs is measured in `reward_accuracy`. Here single responses are: PPO compares
sigmoid(score) with a threshold (Llama 2, section 4.2.3), so it should mean what it says.
"""

from collections.abc import Sequence

import numpy as np

from rayward.cluster.records.rates import rate
from rayward.cluster.records.reward_models import SafetyBin, SafetyCalibration
from rayward.cluster.types import PreferencePair

_BINS = 10


def calibrate_safety(
    rows: Sequence[tuple[PreferencePair, float, float]],
) -> SafetyCalibration | None:
    """Compare scores with safety labels.

    Args:
        rows: pairs, each with the chosen and the rejected answer's score, in logits. Answers
            without a label say nothing here.

    Returns:
        None if no answer has a label.

    Raises:
        ValueError: a labelled answer's score is not finite.
    """
    labelled = [
        (score, safe)
        for pair, chosen, rejected in rows
        for score, safe in ((chosen, pair.chosen_safe), (rejected, pair.rejected_safe))
        if safe is not None
    ]
    if not labelled:
        return None
    scores = np.array([score for score, _ in labelled], dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    safe = np.array([safe for _, safe in labelled], dtype=np.bool_)
    predicted = np.exp(-np.logaddexp(0, -scores))
    numbers = np.minimum((predicted * _BINS).astype(np.int64), _BINS - 1)
    bins = []
    error = 0.0
    for number in np.unique(numbers):
        inside = numbers == number
        mean = float(predicted[inside].mean())
        bins.append(
            SafetyBin(predicted=mean, safe=rate(int(safe[inside].sum()), int(inside.sum())))
        )
        error += abs(float(predicted[inside].sum()) - float(safe[inside].sum())) / len(labelled)
    return SafetyCalibration(bins=tuple(bins), expected_error=error)
