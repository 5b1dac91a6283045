"""From scores to advantages: whitening, KL penalty, token rewards, GAE; float64 inside."""

from collections.abc import Sequence

import numpy as np

from cluster.config.ppo import KLEstimator
from cluster.types import Float32Array

# Added to a batch's standard deviation, so that a constant batch whitens to zeros.
_WHITEN_EPS = 1e-8


def whiten(values: np.ndarray) -> np.ndarray:
    """Shift to mean 0 and scale to population standard deviation 1; [N] -> float64 [N].

    A constant batch carries no preference and becomes zeros.
    """
    wide = values.astype(np.float64)
    centred = wide - wide.mean()
    return np.asarray(centred / (wide.std() + _WHITEN_EPS))


def kl_per_token(
    logprobs: Float32Array, reference_logprobs: Float32Array, estimator: KLEstimator
) -> np.ndarray:
    """Per-token estimate of KL(policy || reference) in nats; [R], [R] -> float64 [R].

    With d = logprob - reference logprob: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d
    (Schulman, "Approximating KL Divergence").
    """
    difference = logprobs.astype(np.float64) - reference_logprobs.astype(np.float64)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference**2
    return np.expm1(-difference) + difference


def token_rewards(reward: float, kl: np.ndarray, beta: float) -> Float32Array:
    """-beta * KL at every token, and the sequence's reward at the last; [R] -> float32 [R].

    Llama 2, equation in section 3.4.3: R(g|p) = R~(g|p) - beta * KL.
    """
    rewards = -beta * kl
    rewards[-1] += reward
    return rewards.astype(np.float32)


def gae(
    rewards: Float32Array, values: Float32Array, gamma: float, lam: float
) -> tuple[Float32Array, Float32Array]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    The episode ends at the last token, whose successor is worth 0.

    Args:
        rewards: [R] token rewards.
        values: [R] the critic's value before each token.
        gamma: discount.
        lam: GAE's lambda.

    Returns:
        Advantages and returns (advantage + value), float32 [R] each.
    """
    advantages = np.zeros(len(rewards), dtype=np.float64)
    following_value = following_advantage = 0.0
    for t in reversed(range(len(rewards))):
        delta = float(rewards[t]) + gamma * following_value - float(values[t])
        following_advantage = delta + gamma * lam * following_advantage
        advantages[t] = following_advantage
        following_value = float(values[t])
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)


def whiten_tokens(advantages: Sequence[Float32Array]) -> list[Float32Array]:
    """Whiten over all valid tokens of the batch; a list of [R_i] stays one."""
    lengths = [len(row) for row in advantages]
    flat = whiten(np.concatenate(advantages)).astype(np.float32)
    return list(np.split(flat, np.cumsum(lengths)[:-1]))
