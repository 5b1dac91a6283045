"""Reward models on held-out pairs, counted by hand."""

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayward.cluster.records.rates import Rate
from rayward.cluster.records.reward_models import RewardModelEvaluation
from rayward.cluster.types import Message, PreferencePair, Prompt, Rating
from rayward.pipelines.supervised.accuracy import evaluate_reward_model


def a_pair(
    rating: Rating | None = None, chosen_safe: bool | None = None, rejected_safe: bool | None = None
) -> PreferencePair:
    prompt = Prompt(
        id="p",
        messages=(Message("user", "hello"),),
        risk_category="unqualified_advice",
        attack_vector=None,
        adversarial=False,
        borderline=False,
        source="test",
    )
    return PreferencePair(prompt, "a", "b", "safety", rating, chosen_safe, rejected_safe)


def test_by_hand() -> None:
    rows = [
        (a_pair("slightly", True, False), 2.0, -1.0),
        (a_pair("slightly", True, False), 1.0, 1.0),  # a tie is wrong
        (a_pair("significantly", True, True), 0.5, 1.5),
        (a_pair(None, False, False), -1.0, -2.0),
        (a_pair(None, False, True), 3.0, 2.0),
        (a_pair(), 0.25, 0.0),
    ]
    found = evaluate_reward_model("safety", rows)
    assert (found.accuracy.count, found.accuracy.total) == (4, 6)

    def counts(groups: dict[str, Rate]) -> dict[str, tuple[int, int]]:
        return {name: (share.count, share.total) for name, share in groups.items()}

    assert counts(found.by_rating) == {
        "significantly": (0, 1),
        "slightly": (1, 2),
        "not known": (3, 3),
    }
    assert list(found.by_rating) == ["significantly", "slightly", "not known"]
    assert counts(found.by_safety) == {
        "chosen safe, rejected unsafe": (1, 2),
        "both safe": (0, 1),
        "both unsafe": (1, 1),
        "chosen unsafe, rejected safe": (1, 1),
        "not known": (1, 1),
    }
    assert counts(found.by_category) == {"unqualified_advice": (4, 6)}
    # Labelled unsafe: -1, 1, -1, -2, 3.
    assert (found.unsafe_recall.count, found.unsafe_recall.total) == (3, 5)
    assert sum(found.histogram.chosen) == sum(found.histogram.rejected) == 6
    assert RewardModelEvaluation.model_validate_json(found.model_dump_json()) == found


def test_labels_that_nobody_gave_make_no_table() -> None:
    found = evaluate_reward_model("helpfulness", [(a_pair(), 1.0, 0.0)])
    assert found.by_rating == {}
    assert found.by_safety == {}


def test_a_calibrated_model_lies_on_the_diagonal() -> None:
    # sigmoid(log 3) = 0.75: of four such pairs three should be right.
    rows = [(a_pair(), log(3), 0.0)] * 3 + [(a_pair(), 0.0, log(3))]
    (only,) = evaluate_reward_model("safety", rows).calibration
    assert (only.predicted, only.observed.rate) == pytest.approx((0.75, 0.75))


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), min_size=1))
def test_every_pair_is_counted_once(scores: list[tuple[float, float]]) -> None:
    found = evaluate_reward_model("safety", [(a_pair(), a, b) for a, b in scores])
    assert sum(part.observed.total for part in found.calibration) == len(scores)
    assert sum(part.observed.count for part in found.calibration) == found.accuracy.count
    assert sum(found.histogram.chosen) == sum(found.histogram.rejected) == len(scores)
    swapped = evaluate_reward_model("safety", [(a_pair(), b, a) for a, b in scores])
    ties = sum(a == b for a, b in scores)
    assert swapped.accuracy.count + found.accuracy.count + ties == len(scores)


@pytest.mark.parametrize("scores", [(float("nan"), 0.0), (0.0, float("inf"))])
def test_a_score_that_is_no_number_is_an_error(scores: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="pair of prompt p"):
        evaluate_reward_model("safety", [(a_pair(), 1.0, 0.0), (a_pair(), *scores)])


def test_no_pairs_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        evaluate_reward_model("safety", [])
