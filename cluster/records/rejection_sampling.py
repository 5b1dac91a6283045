"""What rejection sampling tells of itself: rewards against K, and the temperatures tried."""

from pydantic import BaseModel, ConfigDict


class RewardCurve(BaseModel):
    """Reward against K, the mean over the prompts of one kind; index 0 is K = 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int
    max: tuple[float, ...]
    """Of the best of the first K samples; never falls."""
    median: tuple[float, ...]
    """Of the median of the first K samples."""


class TemperatureTrial(BaseModel):
    """How good the best of K was at one temperature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float
    best_reward: float
