"""Settings of the tiny world and of small models that are made on the spot."""

from typing import Self

from pydantic import Field, model_validator

from rayward.cluster.config.base import Settings
from rayward.cluster.errors import InputError


class TinyWorldSizes(Settings):
    """How much of the tiny world is generated. All prompts of a world differ in their text."""

    demonstrations: int = Field(default=10_000, ge=2)
    """Demonstrations for SFT; half on adversarial prompts, half on benign and borderline ones."""
    preprompt_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the demonstrations that carry the safety preprompt as a system message."""
    borderline_share: float = Field(default=0.2, ge=0, le=1)
    """Share of borderline prompts among the benign half, wherever prompts are for training."""
    safety_demonstrations: int = Field(default=1_500, ge=0)
    """Safe answers to adversarial prompts, for supervised safety fine-tuning."""
    seed_prompts: int = Field(default=210, ge=0)
    """Plainly worded harmful prompts, balanced over the risk categories, for red teaming."""
    train_prompts: int = Field(default=4_200, ge=2)
    """Prompts for PPO; half adversarial, balanced over the cells."""
    safety_pairs: int = Field(default=8_000, ge=1)
    """Preference pairs on the safety axis for training."""
    helpfulness_pairs: int = Field(default=8_000, ge=1)
    """Preference pairs on the helpfulness axis for training."""
    held_out_adversarial: int = Field(default=1_008, ge=0)
    """Held-out adversarial prompts, balanced over the 21 cells."""
    held_out_benign: int = Field(default=1_000, ge=0)
    """Held-out benign prompts."""
    held_out_borderline: int = Field(default=300, ge=0)
    """Held-out borderline prompts."""
    held_out_pairs: int = Field(default=1_000, ge=0)
    """Held-out preference pairs per axis."""
    validation_adversarial: int = Field(default=126, ge=0)
    """Adversarial prompts on which PPO stops early, balanced over the 21 cells."""
    validation_benign: int = Field(default=126, ge=0)
    """Benign prompts (with the borderline share) on which PPO stops early."""


class LlamaShape(Settings):
    """The size of a small Llama and of its tokenizer."""

    vocab_size: int = Field(default=2048, ge=300)
    """Tokens, at most; 256 bytes and five special tokens are always among them."""
    hidden_size: int = Field(default=96, ge=1)
    """Width of the residual stream."""
    heads: int = Field(default=3, ge=1)
    """Attention heads; hidden_size / heads must be a head size that vLLM runs."""
    layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    intermediate_size: int = Field(default=256, ge=1)
    """Width of the feed-forward layer."""
    max_position_embeddings: int = Field(default=512, ge=8)
    """Longest sequence in tokens; also the tokenizer's model_max_length."""

    @model_validator(mode="after")
    def _vllm_runs_the_head_size(self) -> Self:
        # vLLM's CPU attention fails on other head sizes, and only at the first generate.
        sizes = (32, 64, 80, 96, 112, 128, 192, 256)
        if self.hidden_size % self.heads or self.hidden_size // self.heads not in sizes:
            raise InputError(
                "heads",
                self.heads,
                f"as many heads as split hidden_size, which is {self.hidden_size}, "
                f"into heads of a size that vLLM runs: {', '.join(map(str, sizes))}",
            )
        return self
