"""What a logit means."""

from math import exp


def probability(logit: float) -> float:
    """The sigmoid, for any logit."""
    if logit >= 0:
        return 1 / (1 + exp(-logit))
    # For a large negative logit the other form would overflow.
    return exp(logit) / (1 + exp(logit))
