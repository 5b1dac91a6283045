"""PPO's losses against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayward.actors.learning.losses import importance_weights, kl_loss, policy_loss, value_loss
from rayward.actors.models.logits import entropy, token_logprobs


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"),
    [(1.0, 1.5, -1.2), (1.0, 0.5, -0.5), (-1.0, 1.5, 1.5), (-1.0, 0.5, 0.8)],
)
def test_policy_loss_takes_the_worse_of_free_and_clipped(
    advantage: float, ratio: float, expected: float
) -> None:
    loss, clipped = policy_loss(
        torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), 0.2
    )
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert clipped.item() is (expected in (-1.2, 0.8))


@pytest.mark.parametrize(("target", "expected"), [(0.8, 0.02), (1.5, 0.32)])
def test_value_loss(target: float, expected: float) -> None:
    # old .5, new 1.0: clipped to .7. Return .8: max((.2)^2, (.1)^2) / 2 = .02.
    # Return 1.5: max((.5)^2, (.8)^2) / 2 = .32.
    loss, _ = value_loss(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([target]), 0.2)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_no_gradient_where_the_policy_clip_binds() -> None:
    new = torch.tensor([math.log(1.5), math.log(1.1)], requires_grad=True)
    loss, clipped = policy_loss(new, torch.zeros(2), torch.ones(2), 0.2)
    loss.sum().backward()
    assert clipped.tolist() == [True, False]
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([0.0, -1.1], abs=1e-6)


def test_token_logprobs_are_taken_at_the_sampling_temperature() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    # Divided by 2: softmax([1, 0])[0] = 1 / (1 + e^-1).
    expected = -math.log(1 + math.exp(-1))
    assert token_logprobs(logits, torch.tensor([0]), 2.0).item() == pytest.approx(expected)


@given(st.integers(2, 50), st.floats(0.1, 5.0))
def test_entropy_of_the_uniform_distribution_is_log_n(size: int, temperature: float) -> None:
    assert entropy(torch.zeros(1, size), temperature).item() == pytest.approx(
        math.log(size), abs=1e-5
    )


def test_at_ratio_one_the_loss_is_the_negative_advantage() -> None:
    advantages = torch.tensor([0.3, -0.7])
    logprobs = torch.tensor([-1.0, -2.0])
    loss, clipped = policy_loss(logprobs, logprobs, advantages, 0.2)
    assert torch.equal(loss, -advantages)
    assert not clipped.any()


def test_importance_weights_are_cut_and_carry_no_gradient() -> None:
    learner = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    weights = importance_weights(learner, torch.tensor([-1.0, -0.5, -3.0]), cap=2.0)
    # e^0, e^-.5, and e^2 cut at 2.
    assert weights.tolist() == pytest.approx([1.0, 0.606531, 2.0], abs=1e-6)
    assert not weights.requires_grad


def test_grpos_kl_is_k3_and_pulls_towards_the_reference() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    kl = kl_loss(logprobs, torch.tensor([-1.2, -1.5, -0.5]))
    assert float(kl.sum().detach()) == pytest.approx(0.167452, abs=1e-6)
    kl.sum().backward()
    # d k3 / d logprob = 1 - exp(ref - logprob).
    expected = [1 - math.exp(-0.2), 1 - math.exp(0.5), 0.0]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx(expected, abs=1e-6)
