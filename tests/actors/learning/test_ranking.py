import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayward.actors.learning.ranking import auxiliary_safety_loss, margin_of, ranking_loss

SCORES = st.floats(-30, 30)


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (0, 0.371101),
        (1 / 3, 0.486793),
        (2 / 3, 0.628701),
        (1, 0.798139),
        (2, 1.463282),
        (3, 2.305083),
    ],
)
def test_ranking_loss_by_hand(margin: float, expected: float) -> None:
    loss = ranking_loss(torch.tensor([1.2]), torch.tensor([0.4]), torch.tensor([margin]).float())
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_a_hopeless_pair_has_a_finite_loss_and_gradient() -> None:
    chosen = torch.tensor([-1000.0], requires_grad=True)
    loss = ranking_loss(chosen, torch.zeros(1), torch.zeros(1))
    loss.sum().backward()
    assert loss.tolist() == [1000.0]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [-1.0]


@given(chosen=SCORES, rejected=SCORES)
def test_swapping_a_pair_flips_the_sign_of_its_margin(chosen: float, rejected: float) -> None:
    first, second = torch.tensor([[chosen], [rejected]], dtype=torch.float64)
    zero = torch.zeros(1).double()
    # -log s(x) + log s(-x) = -x
    forward, swapped = ranking_loss(first, second, zero), ranking_loss(second, first, zero)
    assert float(forward - swapped) == pytest.approx(rejected - chosen, abs=1e-9)


def test_margins_follow_table_27() -> None:
    ratings = ("significantly", "better", "slightly", "negligibly")
    assert [margin_of(rating, "small") for rating in ratings] == [1, 2 / 3, 1 / 3, 0]
    assert [margin_of(rating, "large") for rating in ratings] == [3, 2, 1, 0]
    assert [margin_of(rating, "none") for rating in ratings] == [0, 0, 0, 0]
    assert margin_of(None, "large") == 0


def test_the_auxiliary_loss_is_cross_entropy_on_the_logit() -> None:
    losses = auxiliary_safety_loss(
        torch.tensor([2.0, 2.0, -1000.0]), torch.tensor([True, False, True])
    )
    expected = [math.log1p(math.exp(-2)), math.log1p(math.exp(2)), 1000.0]
    assert losses.tolist() == pytest.approx(expected, abs=1e-5)
