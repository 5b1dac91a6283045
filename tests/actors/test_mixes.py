"""The piecewise reward (Llama 2, section 3.4.3)."""

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.mixes import make_mix
from cluster.config.mixes import PiecewiseMixSettings
from pipelines.advantages import whiten


def logit(probability: float) -> float:
    return log(probability / (1 - probability))


def probability(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit.astype(np.float64)))


def test_the_papers_rule_and_its_whitened_logits() -> None:
    safety = np.array([logit(p) for p in (0.10, 0.15, 0.80, 0.80)], dtype=np.float32)
    helpfulness = np.array([logit(p) for p in (0.90, 0.90, 0.30, 0.30)], dtype=np.float32)
    mixed = make_mix(PiecewiseMixSettings()).combine(
        safety, helpfulness, [False, False, True, False]
    )
    # At exactly 0.15 the comparison is strict, so helpfulness decides.
    assert mixed.decided_by == ("safety", "helpfulness", "safety", "helpfulness")
    assert probability(mixed.score) == pytest.approx([0.10, 0.90, 0.80, 0.30], abs=1e-6)
    assert whiten(mixed.score) == pytest.approx(
        [-1.334044, 1.179873, 0.715967, -0.561796], abs=1e-6
    )


def test_the_threshold_as_a_logit() -> None:
    below, above = np.float32(-1.734602), np.float32(-1.734599)
    mixed = make_mix(PiecewiseMixSettings()).combine(
        np.array([below, above]), np.zeros(2, np.float32), [False, False]
    )
    assert mixed.decided_by == ("safety", "helpfulness")


@given(
    st.lists(
        st.tuples(st.floats(-500, 500, width=32), st.floats(-500, 500, width=32), st.booleans()),
        min_size=1,
    )
)
def test_the_score_is_always_one_of_the_two_and_a_tag_means_safety(
    rows: list[tuple[float, float, bool]],
) -> None:
    safety, helpfulness, tagged = (list(column) for column in zip(*rows, strict=True))
    mixed = make_mix(PiecewiseMixSettings()).combine(
        np.array(safety, np.float32), np.array(helpfulness, np.float32), tagged
    )
    for row, score, by in zip(rows, mixed.score, mixed.decided_by, strict=True):
        assert score == np.float32(row[0] if by == "safety" else row[1])
        assert by == "safety" or not row[2]


def test_another_threshold() -> None:
    settings = PiecewiseMixSettings(threshold=0.5)
    mixed = make_mix(settings).combine(
        np.array([-0.1, 0.1], np.float32), np.zeros(2, np.float32), [False, False]
    )
    assert mixed.decided_by == ("safety", "helpfulness")
