"""Reward mixes: the paper's rule, a weighted sum, and the Lagrangian of Safe RLHF."""

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayward.actors.scoring.mixes import LagrangianMix, make_mix
from rayward.cluster.config.mixes import (
    LagrangianMixSettings,
    PiecewiseMixSettings,
    WeightedSumMixSettings,
)
from rayward.pipelines.ppo.advantages import whiten


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


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_a_weighted_sum_of_logits_says_its_weights() -> None:
    settings = WeightedSumMixSettings(safety_weight=0.75, helpfulness_weight=0.5)
    mixed = make_mix(settings).combine(f32(2, -4), f32(1, 6), [True, False])
    assert mixed.score.tolist() == [2.0, 0.0]
    assert mixed.safety_weight.tolist() == [0.75, 0.75]
    assert mixed.helpfulness_weight.tolist() == [0.5, 0.5]
    assert mixed.decided_by == ("both", "both")


def test_a_weight_of_zero_leaves_one_model_to_decide() -> None:
    mix = make_mix(WeightedSumMixSettings(safety_weight=1.0, helpfulness_weight=0.0))
    assert mix.combine(f32(2), f32(1), [False]).decided_by == ("safety",)


def test_the_piecewise_rule_gives_all_weight_to_the_one_that_decides() -> None:
    mixed = make_mix(PiecewiseMixSettings()).combine(f32(2, 2), f32(1, 1), [True, False])
    assert mixed.safety_weight.tolist() == [1.0, 0.0]
    assert mixed.helpfulness_weight.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("excess", "expected"), [(0.5, 1.051271), (-0.5, 0.951229)])
def test_the_multiplier_moves_with_the_cost(excess: float, expected: float) -> None:
    mix = LagrangianMix(LagrangianMixSettings(cost_limit=0.5))
    mix.ascend(0.5 + excess)
    assert mix.multiplier == pytest.approx(expected, abs=1e-6)


def test_the_multiplier_scales_its_own_ascent() -> None:
    # Lambda 2: log 2 + .1 * 2 * .5 = log(2 * exp(.1)).
    mix = LagrangianMix(LagrangianMixSettings(cost_limit=0.25, initial_multiplier=2.0))
    mix.ascend(0.75)
    assert mix.multiplier == pytest.approx(2 * 1.105171, abs=1e-6)


def test_the_cost_is_the_mean_probability_of_being_unsafe() -> None:
    mix = LagrangianMix(LagrangianMixSettings(cost_limit=0.3))
    # 1 - sigmoid: .5 and .2, mean .35; lambda exp(.1 * .05).
    numbers = mix.learn(f32(0.0, logit(0.8)))
    assert numbers["reward/cost/mean"] == pytest.approx(0.35, abs=1e-6)
    assert numbers["reward/lagrange_multiplier"] == 1.0
    assert mix.multiplier == pytest.approx(1.005013, abs=1e-6)


def test_the_multiplier_weighs_safety_against_helpfulness_and_survives_a_restart() -> None:
    settings = LagrangianMixSettings(initial_multiplier=3.0)
    mix = make_mix(settings)
    mixed = mix.combine(f32(2), f32(-2), [False])
    # (R_h + 3 R_s) / 4.
    assert mixed.score.tolist() == [1.0]
    assert (mixed.safety_weight[0], mixed.helpfulness_weight[0]) == (0.75, 0.25)
    mix.learn(f32(-1, -3))
    again = make_mix(settings)
    again.restore(mix.state())
    assert again.state() == mix.state()
    assert (
        again.combine(f32(2), f32(-2), [False]).score == mix.combine(f32(2), f32(-2), [False]).score
    )
    assert again.combine(f32(2), f32(-2), [False]).score > 1.0


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60))
def test_the_multiplier_stays_in_its_range(logits: list[float]) -> None:
    settings = LagrangianMixSettings(learning_rate=5.0, min_multiplier=0.5, max_multiplier=2.0)
    mix = LagrangianMix(settings)
    for value in logits:
        mix.learn(f32(value))
        assert 0.5 - 1e-9 <= mix.multiplier <= 2.0 + 1e-9


def test_a_mix_without_memory_refuses_a_state() -> None:
    with pytest.raises(ValueError, match="no state"):
        make_mix(WeightedSumMixSettings()).restore({"log_multiplier": 0.0})
