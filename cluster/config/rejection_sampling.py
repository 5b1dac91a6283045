"""Settings of rejection sampling fine-tuning."""

from typing import Annotated

from pydantic import Field

from rayward.cluster.config.base import Settings
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.supervised import SFTSettings


class TemperatureSearchSettings(Settings):
    """Try several temperatures on a few prompts, and take the one whose best samples are best."""

    temperatures: list[Annotated[float, Field(gt=0, le=2)]] = Field(
        default=[0.8, 1.0, 1.2, 1.4], min_length=2
    )
    """What is tried. The best one rises as training goes on (Llama 2, section 3.2.3)."""
    prompts: int = Field(default=64, ge=1)
    """Training prompts, at most, on which all are tried."""


class RejectionSamplingSettings(Settings):
    """Best of K answers by the reward mix, then a fit to them (Llama 2, section 3.2.3)."""

    samples_per_prompt: int = Field(default=10, ge=1)
    """K: answers drawn for each prompt, of which the best is kept."""
    prompts: int | None = Field(default=None, ge=1)
    """Training prompts, at most, drawn at random; null takes all."""
    sampling: SamplingSettings = SamplingSettings(temperature=1.2)
    """How the answers are drawn; 1.2 to 1.3 was best for K of 10 to 100."""
    temperature_search: TemperatureSearchSettings | None = None
    """Search the temperature first; null takes `sampling.temperature`."""
    earlier: list[str] = Field(default_factory=list)
    """Earlier runs, or their best.parquet files, whose best samples are kept beside the newest.
    Earlier rounds of the same run always are."""
    fit: SFTSettings = SFTSettings(epochs=1)
    """The fit to the best answers."""
