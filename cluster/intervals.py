"""How far a measured share can be trusted."""

from math import sqrt

# The standard normal's 97.5 % quantile: two-sided 95 % intervals.
Z_95 = 1.959964


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a binomial share.

    E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    Unlike the textbook interval it stays inside [0, 1] and says something at 0 and at n.

    Args:
        successes: how many of the `n` trials succeeded.
        n: trials, at least 1.
        z: the standard normal's quantile.

    Returns:
        The lower and the upper end, shares in [0, 1].

    Raises:
        ValueError: `n` is below 1 or `successes` is not within 0..n.
    """
    if n < 1:
        raise ValueError(f"n is {n}: an interval needs at least one trial")
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes}, not within 0..{n}")
    share = successes / n
    spread = z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * sqrt((share * (1 - share) + spread / 4) / n) / (1 + spread)
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high
