"""Wilson intervals: numbers worked by hand, and what always holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayward.cluster.intervals import Z_95, wilson


# (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with z^2 = 3.841459
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (18, 20, 0.698966, 0.972134),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (1, 2, 0.094531, 0.905469),
    ],
)
def test_by_hand(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_it_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    mirrored_low, mirrored_high = wilson(n - successes, n)
    assert (1 - mirrored_high, 1 - mirrored_low) == pytest.approx((low, high), abs=1e-12)
    # By definition the ends are the shares p at which the observed one is z deviations away.
    for end in (low, high):
        distance = abs(successes / n - end)
        assert distance**2 == pytest.approx(Z_95**2 * end * (1 - end) / n, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "n", "named"), [(0, 0, "n is 0"), (3, 2, "3"), (-1, 2, "-1")]
)
def test_what_is_no_share(successes: int, n: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        wilson(successes, n)
