"""How good a reward model is on held-out pairs: accuracy, calibration, scores."""

from pydantic import BaseModel, ConfigDict

from rayward.cluster.records.rates import Rate
from rayward.cluster.types import Axis


class SafetyBin(BaseModel):
    """Labelled responses whose predicted probability of being safe fell into one bin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    predicted: float  # mean sigmoid(score), in [0, 1]
    safe: Rate  # how many were


class SafetyCalibration(BaseModel):
    """The safety model's sigmoid(score) against safety labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bins: tuple[SafetyBin, ...]  # of equal width, in rising order, without empty ones
    expected_error: float  # mean distance of predicted and observed share, weighted by responses


class CalibrationBin(BaseModel):
    """Pairs whose predicted probability fell into one bin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    predicted: float  # mean probability that the higher score was preferred, in [0.5, 1]
    observed: Rate  # how often it was


class ScoreHistogram(BaseModel):
    """Scores of both answers, in logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edges: tuple[float, ...]  # [B + 1]
    chosen: tuple[int, ...]  # [B]
    rejected: tuple[int, ...]  # [B]


class RewardModelEvaluation(BaseModel):
    """A reward model on held-out pairs. A tie counts as wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    axis: Axis
    accuracy: Rate
    by_rating: dict[str, Rate]
    by_safety: dict[str, Rate]
    by_category: dict[str, Rate]
    unsafe_recall: Rate  # of answers labelled unsafe, those that score below 0
    calibration: tuple[CalibrationBin, ...]
    histogram: ScoreHistogram
