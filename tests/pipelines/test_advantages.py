"""Whitening, KL, token rewards and GAE against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.ppo import KLEstimator
from pipelines.advantages import gae, kl_per_token, token_rewards, whiten, whiten_tokens


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
