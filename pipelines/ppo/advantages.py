"""From scores to advantages: whitening, KL penalty, token rewards, GAE, GRPO and RLOO.

Everything is computed in float64.
"""

from collections.abc import Sequence

import numpy as np

from rayward.cluster.config.ppo import KLEstimator
from rayward.cluster.types import Float32Array

# Added to a batch's standard deviation, so that a constant batch whitens to zeros.
_WHITEN_EPS = 1e-8
# The same for a group of answers to one prompt, whose scores may differ by rounding alone.
_GROUP_EPS = 1e-6


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


def returns_to_go(rewards: Float32Array) -> Float32Array:
    """Sum of the rewards from each token on; [R] -> float32 [R]."""
    return np.cumsum(rewards[::-1].astype(np.float64))[::-1].astype(np.float32)


def grpo(rewards: np.ndarray, group_size: int) -> np.ndarray:
    """How far each answer is above its group, in the group's population standard deviations.

    Shao et al. 2024, "DeepSeekMath", section 4.1.2. A group of equal rewards gets zeros.

    Args:
        rewards: [N], one per answer; the answers to one prompt stand together.
        group_size: answers per prompt, a divisor of N.

    Returns:
        float64 [N].
    """
    groups = rewards.astype(np.float64).reshape(-1, group_size)
    centred = groups - groups.mean(axis=1, keepdims=True)
    return (centred / (groups.std(axis=1, keepdims=True) + _GROUP_EPS)).reshape(-1)


def rloo(rewards: np.ndarray, group_size: int) -> np.ndarray:
    """How far each answer is above the mean of the others to its prompt (leave one out).

    Ahmadian et al. 2024, "Back to Basics". Arguments and result as for `grpo`; a
    group has at least two answers.
    """
    groups = rewards.astype(np.float64).reshape(-1, group_size)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (group_size - 1)
    return (groups - others).reshape(-1)


def whiten_tokens(advantages: Sequence[Float32Array]) -> list[Float32Array]:
    """Whiten over all valid tokens of the batch; a list of [R_i] stays one."""
    lengths = [len(row) for row in advantages]
    flat = whiten(np.concatenate(advantages)).astype(np.float32)
    return list(np.split(flat, np.cumsum(lengths)[:-1]))
