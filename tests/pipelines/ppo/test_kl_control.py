"""The weight of the KL penalty, fixed and steered (Ziegler et al. 2019, section 2.2)."""

import pytest

from rayward.cluster.config.ppo import AdaptiveKLSettings, KLSettings
from rayward.pipelines.ppo.kl_control import KLController


def controller(target: float = 6.0, horizon: int = 1000) -> KLController:
    adaptive = AdaptiveKLSettings(target=target, horizon=horizon)
    return KLController(KLSettings(beta=0.1, adaptive=adaptive))


def test_a_fixed_beta_stays() -> None:
    fixed = KLController(KLSettings(beta=0.1))
    fixed.observe(1e6, rollouts=512)
    assert fixed.beta == 0.1


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),
        (6.6, 0.1 * (1 + 0.1 * 0.5)),  # a tenth over the target, 500 of 1000 rollouts
        (5.4, 0.1 * (1 - 0.1 * 0.5)),
        (60.0, 0.1 * (1 + 0.2 * 0.5)),  # the error counts as a fifth at most
        (0.0, 0.1 * (1 - 0.2 * 0.5)),
    ],
)
def test_beta_follows_the_error(kl: float, expected: float) -> None:
    steered = controller()
    steered.observe(kl, rollouts=500)
    assert steered.beta == pytest.approx(expected)


def test_it_goes_on_where_it_was() -> None:
    steered, again = controller(), controller()
    steered.observe(60.0, rollouts=500)
    again.restore(steered.state())
    steered.observe(5.0, rollouts=500)
    again.observe(5.0, rollouts=500)
    assert again.beta == steered.beta != 0.1
