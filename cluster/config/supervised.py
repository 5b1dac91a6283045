"""Settings of the supervised stages: SFT and the two reward models."""

from typing import Literal

from pydantic import Field

from rayward.cluster.config.base import Settings
from rayward.cluster.config.roles import (
    DeepSpeedSettings,
    LoRASettings,
    OptimizerSettings,
    Precision,
    Resources,
)


class ScheduleSettings(Settings):
    """Linear warm-up, then cosine decay (Llama 2, sections 3.1 and 3.2.2)."""

    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    """Share of all steps spent on the warm-up."""
    warmup_min_steps: int = Field(default=5, ge=0)
    """The warm-up takes at least this many steps."""
    final_share: float = Field(default=0.1, ge=0, le=1)
    """The learning rate ends at this share of its peak."""


class SupervisedSettings(Settings):
    """What SFT and reward training share: one loop, one set of settings."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the data."""
    batch_size: int = Field(default=64, ge=1)
    """Rows (demonstrations or pairs) per optimizer step, over all ranks."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest sequence in tokens. Longer rows are left out and counted."""
    max_tokens_per_microbatch: int = Field(default=16384, ge=1)
    """Padded tokens in one forward and backward pass, at most; the rest is accumulated."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps; null runs all epochs."""
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=2e-5)
    """AdamW's settings."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning-rate schedule."""
    deepspeed: DeepSpeedSettings = DeepSpeedSettings()
    """Ranks and ZeRO stage."""
    precision: Precision = "float32"
    """The dtype of the trained weights."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, more time."""
    resources: Resources = Resources()
    """What each rank asks of Ray."""


class SFTSettings(SupervisedSettings):
    """Supervised (safety) fine-tuning (Llama 2, sections 3.1 and 4.2.2)."""

    epochs: int = Field(default=2, ge=1)
    """Passes over the data."""
    loss_on: Literal["final_turn", "all_assistant_turns"] = "final_turn"
    """Which assistant turns are learned; prompt tokens never are."""
    lora: LoRASettings | None = None
    """Train low-rank adapters and merge them at the end; null trains all weights."""


class SafetySFTSettings(SFTSettings):
    """Supervised safety fine-tuning: safe answers to adversarial prompts, mixed with general data
    (Llama 2, section 4.2.2)."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the mix."""
    benign_replay: float = Field(default=1.0, ge=0)
    """Benign demonstrations in the mix for each safety demonstration, drawn at random."""


class RewardTrainingSettings(SupervisedSettings):
    """Training of one reward model (Llama 2, section 3.2.2)."""

    batch_size: int = Field(default=512, ge=1)
    """Pairs per optimizer step, over all ranks."""
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-5)
    """AdamW's settings."""
    margin: Literal["none", "small", "large"] = "none"
    """Rating margins in the ranking loss (Llama 2, table 27)."""
    own_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the model's own axis in its mix; the rest is drawn from the other axis's pairs."""


class SafetyRewardSettings(RewardTrainingSettings):
    """Training of the safety reward model, which also learns safety labels."""

    own_share: float = Field(default=0.9, gt=0, le=1)
    """Share of safety pairs in the mix; the rest is drawn from the helpfulness pairs."""
    auxiliary_weight: float = Field(default=0.1, ge=0)
    """Weight of the safety classification loss beside the ranking loss."""
