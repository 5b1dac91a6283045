"""Settings of targeted safety context distillation."""

from pydantic import Field

from rayward.cluster.config.base import Settings
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.supervised import SFTSettings


class ContextDistillationSettings(Settings):
    """Answer adversarial prompts after a safety preprompt, keep what the safety model finds
    better, and learn it without the preprompt (Llama 2, section 4.2.4)."""

    prompts: int | None = Field(default=None, ge=1)
    """Adversarial training prompts, at most, drawn at random; null takes all."""
    preprompts: str | None = None
    """A YAML file of preprompts: generic, by adjective, by risk category; null takes the one that
    comes with Rayward, or in the tiny world its own."""
    preprompts_per_prompt: int = Field(default=1, ge=1)
    """Preprompts tried on each prompt, drawn at random; the best answer is compared."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn, with and without a preprompt."""
    benign_replay: float = Field(default=1.0, ge=0)
    """Benign demonstrations in the fit for each kept answer, drawn at random."""
    fit: SFTSettings = SFTSettings(epochs=1)
    """The fit to the kept answers."""
