"""What logits say of tokens: their logprobs, and the entropy."""

from torch import Tensor


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """Logprobs of given tokens at the sampling temperature, in nats.

    Args:
        logits: [..., V], any float dtype; position t predicts `token_ids[t]`.
        token_ids: int64 [...].
        temperature: divides the logits, as the sampler does.

    Returns:
        float32 [...].
    """
    scaled = logits.float() / temperature
    chosen = scaled.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(-1)


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropy of the sampling distribution, in nats: logits [..., V] -> float32 [...]."""
    logprobs = (logits.float() / temperature).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
