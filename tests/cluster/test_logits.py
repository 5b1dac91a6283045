"""A logit's probability, at its ends too."""

from math import log

import pytest

from rayward.cluster.logits import probability


def test_a_logit_is_the_logarithm_of_the_odds() -> None:
    assert probability(0.0) == 0.5
    assert probability(log(3)) == pytest.approx(0.75, abs=1e-15)
    assert probability(-log(3)) == pytest.approx(0.25, abs=1e-15)
    assert (probability(1000.0), probability(-1000.0)) == (1.0, 0.0)
    assert probability(-700.0) == pytest.approx(9.859676543759772e-305, rel=1e-12)
