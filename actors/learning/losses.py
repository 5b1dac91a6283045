"""PPO's per-token losses. Every tensor is float32 over response tokens."""

import torch
from torch import Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate loss per token (Schulman et al. 2017, equation 7, negated).

    Args:
        logprobs: [...] under the weights being trained.
        old_logprobs: [...] under the weights that the batch started from.
        advantages: [...].
        clip: half width of the trust interval around a ratio of 1.

    Returns:
        The loss [...], and a bool tensor [...] that is true where the clip bound.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, clipped), clipped > free


def importance_weights(logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """Truncated importance weights of tokens that came from other weights than the learner's.

    min(pi_learner / pi_sampler, cap), per token (Ionides 2008; for PPO on stale rollouts Fu et
    al. 2025, "AReaL", section 5.2). They carry no gradient.

    Args:
        logprobs: [...] under the weights that the batch is learned from.
        sampler_logprobs: [...] as they were sampled.
        cap: largest weight.
    """
    return torch.exp(logprobs - sampler_logprobs).clamp(max=cap).detach()


def kl_loss(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """KL to the reference per token, by the estimator k3 (GRPO, Shao et al. 2024, equation 4).

    Args:
        logprobs: [...] under the weights being trained.
        reference_logprobs: [...].
    """
    difference = reference_logprobs - logprobs
    return torch.expm1(difference) - difference


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error, with the step from the old value clipped; per token.

    Args:
        values: [...] under the weights being trained.
        old_values: [...] when the batch was scored.
        returns: [...] targets.
        clip: furthest that a value may move from its old one before it stops counting.

    Returns:
        The loss [...], and a bool tensor [...] that is true where the clip bound.
    """
    clipped_values = old_values + (values - old_values).clamp(-clip, clip)
    free = 0.5 * (values - returns).square()
    clipped = 0.5 * (clipped_values - returns).square()
    return torch.maximum(free, clipped), clipped > free
