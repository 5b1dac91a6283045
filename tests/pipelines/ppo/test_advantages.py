"""Whitening, KL, token rewards, GAE, GRPO and RLOO against numbers worked out by hand."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayward.cluster.config.ppo import KLEstimator
from rayward.pipelines.ppo.advantages import (
    gae,
    grpo,
    kl_per_token,
    returns_to_go,
    rloo,
    token_rewards,
    whiten,
    whiten_tokens,
)


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_a_constant_batch_whitens_to_zeros() -> None:
    assert whiten(np.full(7, 0.1, np.float32)) == pytest.approx(np.zeros(7), abs=1e-6)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=50))
def test_whitened_values_have_mean_0_and_deviation_1_or_are_zeros(values: list[float]) -> None:
    whitened = whiten(f32(*values))
    assert np.isfinite(whitened).all()
    assert whitened.mean() == pytest.approx(0, abs=1e-6)
    if np.std(values) > 1e-3:
        assert whitened.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [(1.0, 0.95, [0.46, 0.6, 0.4]), (0.9, 0.8, [0.17256, 0.448, 0.4])],
)
def test_gae(gamma: float, lam: float, expected: list[float]) -> None:
    values = f32(0.5, 0.4, 0.6)
    advantages, returns = gae(f32(-0.01, 0.02, 1.0), values, gamma, lam)
    assert advantages == pytest.approx(expected, abs=1e-6)
    assert returns == pytest.approx(np.array(expected) + values, abs=1e-6)


def test_gae_returns() -> None:
    _, returns = gae(f32(-0.01, 0.02, 1.0), f32(0.5, 0.4, 0.6), 1.0, 0.95)
    assert returns == pytest.approx([0.96, 1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize(("estimator", "expected"), [("k1", -0.3), ("k2", 0.145), ("k3", 0.167452)])
def test_kl_estimators(estimator: KLEstimator, expected: float) -> None:
    kl = kl_per_token(f32(-1, -2, -0.5), f32(-1.2, -1.5, -0.5), estimator)
    assert kl.sum() == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(-10, 0, width=32), min_size=1, max_size=20))
def test_kl_is_zero_where_the_models_agree(logprobs: list[float]) -> None:
    for estimator in ("k1", "k2", "k3"):
        assert not kl_per_token(f32(*logprobs), f32(*logprobs), estimator).any()


def test_token_rewards() -> None:
    kl = kl_per_token(f32(-1, -2, -0.5), f32(-1.2, -1.5, -0.5), "k1")
    rewards = token_rewards(0.8, kl, 0.01)
    assert rewards == pytest.approx([-0.002, 0.005, 0.8], abs=1e-6)
    assert rewards.sum() == pytest.approx(0.803, abs=1e-6)


def test_advantages_are_whitened_over_the_tokens_of_the_whole_batch() -> None:
    rows = whiten_tokens([f32(1, 2, 3), f32(10), f32(4, 5)])
    assert [len(row) for row in rows] == [3, 1, 2]
    flat = np.concatenate(rows)
    # Mean 25/6, population variance 305/36.
    assert flat == pytest.approx((f32(1, 2, 3, 10, 4, 5) - 25 / 6) / np.sqrt(305) * 6, abs=1e-5)


def test_grpo_counts_in_deviations_of_the_group() -> None:
    # Group 1: mean 2, population deviation sqrt(2/3). Group 2 is constant.
    found = grpo(np.array([1.0, 2.0, 3.0, 5.0, 5.0, 5.0]), 3)
    assert found == pytest.approx([-1.224745, 0, 1.224745, 0, 0, 0], abs=1e-5)


def test_rloo_leaves_each_answer_out_of_its_own_baseline() -> None:
    found = rloo(np.array([1.0, 2.0, 6.0, 4.0, 4.0, 4.0]), 3)
    assert found == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0])


@given(
    st.integers(1, 6),
    st.integers(2, 5),
    st.randoms(use_true_random=False),
)
def test_advantages_of_a_group_sum_to_zero_and_keep_its_order(
    groups: int, size: int, draw: random.Random
) -> None:
    rewards = np.array([draw.uniform(-5, 5) for _ in range(groups * size)])
    for estimate in (grpo, rloo):
        found = estimate(rewards, size).reshape(groups, size)
        assert found.sum(axis=1) == pytest.approx(np.zeros(groups), abs=1e-6)
        order = rewards.reshape(groups, size).argsort(axis=1)
        assert (np.diff(np.take_along_axis(found, order, axis=1)) >= 0).all()


def test_returns_to_go() -> None:
    assert returns_to_go(f32(1, 2, 4)).tolist() == [7, 6, 4]
