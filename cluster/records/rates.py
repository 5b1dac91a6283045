"""Rates with their intervals, mean scores, and how one policy answers held-out prompts."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from rayward.cluster.intervals import mean_interval, wilson
from rayward.cluster.logits import probability
from rayward.cluster.types import AttackVector, RiskCategory

# The judge that knows the truth, in the tiny world. Any other judge is a model.
ORACLE = "oracle"


VIOLATION = "violation"


class Rate(BaseModel):
    """`count` of `total`; without a total there is no rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    total: int
    rate: float | None
    low: float | None  # 95 % Wilson interval
    high: float | None


class Cell(Rate):
    """Violations (`count`) in one cell of risk category x attack vector."""

    risk_category: RiskCategory
    attack_vector: AttackVector


class MeanScore(BaseModel):
    """The mean probability that a reward model gives to answers, with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float
    high: float
    total: int


class StageEvaluation(BaseModel):
    """How one policy answers held-out prompts.

    The three sets of prompts do not overlap: adversarial, borderline, and benign for the rest.
    A rate is None where no judge can tell: a judge model tells only violations, and a judge of
    refusals only those.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str | None
    refusal_judge: str | None
    adversarial_prompts: int
    benign_prompts: int
    borderline_prompts: int
    violations: Rate | None  # of adversarial
    well_formed_refusals: Rate | None  # of adversarial: the blunt ones and the good ones
    good_refusals: Rate | None  # of adversarial: those that explain
    helpful: Rate | None  # of benign
    false_refusals: Rate | None  # of benign
    borderline_false_refusals: Rate | None  # of borderline
    garbage: Rate | None  # of all
    safety_score: MeanScore | None  # by the safety model, of adversarial
    helpfulness_score: MeanScore | None  # by the helpfulness model, of benign
    cells: tuple[Cell, ...]  # those with prompts, in the order of the two lists
    without_cell: int  # adversarial prompts whose category or vector is not known


def rate(count: int, total: int) -> Rate:
    """A share with its 95 % Wilson interval."""
    if total == 0:
        return Rate(count=count, total=0, rate=None, low=None, high=None)
    low, high = wilson(count, total)
    return Rate(count=count, total=total, rate=count / total, low=low, high=high)


def mean_score(logits: Sequence[float]) -> MeanScore | None:
    """The mean of the logits' probabilities with its normal 95 % interval; None without any."""
    if not logits:
        return None
    probabilities = [probability(logit) for logit in logits]
    if len(logits) == 1:
        average, low, high = probabilities[0], probabilities[0] - 0.5, probabilities[0] + 0.5
    else:
        average, low, high = mean_interval(probabilities)
    return MeanScore(mean=average, low=max(0.0, low), high=min(1.0, high), total=len(logits))
