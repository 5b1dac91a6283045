import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayward.cluster.types import Message, PreferencePair, Prompt
from rayward.pipelines.supervised.calibration import calibrate_safety

PROMPT = Prompt("p", (Message("user", "q"),), None, None, False, False, "test")


def row(
    chosen: float, rejected: float, chosen_safe: bool | None, rejected_safe: bool | None
) -> tuple[PreferencePair, float, float]:
    labels = (chosen_safe, rejected_safe)
    return PreferencePair(PROMPT, "c", "r", "safety", None, *labels), chosen, rejected


def test_calibration_by_hand() -> None:
    # sigmoid(log 3) = 0.75, sigmoid(-log 3) = 0.25
    rows = [
        row(math.log(3), -math.log(3), True, False),
        row(math.log(3), -math.log(3), True, True),
        row(math.log(3), math.nan, False, None),
    ]
    found = calibrate_safety(rows)
    assert found is not None
    low, high = found.bins
    assert low.predicted == pytest.approx(0.25)
    assert (low.safe.count, low.safe.total) == (1, 2)
    assert high.predicted == pytest.approx(0.75)
    assert (high.safe.count, high.safe.total) == (2, 3)
    assert found.expected_error == pytest.approx((2 * 0.25 + 3 * (0.75 - 2 / 3)) / 5)


def test_without_labels_there_is_no_calibration() -> None:
    assert calibrate_safety([row(1.0, 0.0, None, None)]) is None


def test_a_score_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="finite"):
        calibrate_safety([row(math.inf, 0.0, True, None)])


@given(scores=st.lists(st.floats(-1000, 1000), min_size=1, max_size=30))
def test_every_labelled_answer_is_in_one_bin(scores: list[float]) -> None:
    found = calibrate_safety([row(score, 0.0, True, None) for score in scores])
    assert found is not None
    assert sum(each.safe.total for each in found.bins) == len(scores)
    predicted = [each.predicted for each in found.bins]
    assert predicted == sorted(predicted)
    assert 0 <= found.expected_error <= 1
