"""Supervised (safety) fine-tuning: imitate demonstrations (Llama 2, sections 3.1 and 4.2.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayward.actors.learning.lora import add_adapters
from rayward.actors.models.loading import load_causal_lm, load_tokenizer
from rayward.actors.models.microbatches import length_mask, right_pad
from rayward.actors.text.chat import assistant_mask, encode_conversation
from rayward.cluster.config.roles import Precision
from rayward.cluster.config.supervised import SFTSettings
from rayward.cluster.errors import InputError
from rayward.cluster.types import Demonstration
from rayward.pipelines.supervised.fit import FitResult, fit
from rayward.pipelines.supervised.loop import StepReport, SupervisedTask


@dataclass(frozen=True)
class SFTRow:
    """An encoded demonstration."""

    token_ids: list[int]  # [L]
    learned: list[bool]  # [L], True on the tokens that are imitated

    @property
    def longest(self) -> int:
        """Its tokens."""
        return len(self.token_ids)

    padded = tokens = longest


@dataclass(frozen=True)
class SFTTask(SupervisedTask[SFTRow]):
    """Imitate the assistant's turns; a batch's loss is the mean over its learned tokens."""

    measures: ClassVar[tuple[str, ...]] = ()

    path: str
    demonstrations: Sequence[Demonstration]
    held_out: Sequence[Demonstration]
    settings: SFTSettings
    seed: int
    """Of new adapters, where the settings ask for them."""
    section: str = "sft"
    """Where the settings are in a recipe: other stages fit a policy, too."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the model at `path`."""
        return load_tokenizer(self.path)

    def load_model(self, precision: Precision) -> PreTrainedModel:
        """The language model at `path`, with adapters where the settings ask for them.

        Raises:
            InputError: the model cannot be loaded, or has no such layers.
        """
        model = load_causal_lm(self.path, precision)
        if self.settings.lora is not None:
            add_adapters(model, self.settings.lora, self.seed, f"{self.section}.lora")
        return model

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> list[SFTRow]:
        """The demonstrations, encoded."""
        return [self._encode(tokenizer, shown) for shown in self.demonstrations]

    def held_out_rows(self, tokenizer: PreTrainedTokenizerBase) -> list[SFTRow]:
        """The held-out demonstrations, encoded."""
        return [self._encode(tokenizer, shown) for shown in self.held_out]

    def totals(self, rows: Sequence[SFTRow]) -> tuple[float, ...]:
        """Learned tokens."""
        return (float(sum(sum(row.learned[1:]) for row in rows)),)

    def loss(
        self, model: PreTrainedModel, rows: Sequence[SFTRow], totals: tuple[float, ...]
    ) -> Tensor:
        """Cross-entropy of the learned tokens, [1]."""
        losses, _ = _token_losses(model, rows)
        return (losses.sum() / totals[0]).unsqueeze(0)

    def outputs(self, model: PreTrainedModel, rows: Sequence[SFTRow]) -> Tensor:
        """Summed loss in nats and number of learned tokens per row, [rows, 2]."""
        losses, learned = _token_losses(model, rows)
        return torch.stack([losses.sum(dim=1), learned.sum(dim=1)], dim=1)

    def _encode(self, tokenizer: PreTrainedTokenizerBase, shown: Demonstration) -> SFTRow:
        encoded = encode_conversation(tokenizer, shown.prompt.messages, shown.response)
        if self.settings.loss_on == "all_assistant_turns":
            field = f"{self.section}.loss_on"
            mask = assistant_mask(tokenizer, shown.prompt.messages, shown.response, field)
            return SFTRow(encoded.token_ids, mask)
        response_tokens = len(encoded.token_ids) - encoded.response_start
        mask = [False] * encoded.response_start + [True] * response_tokens
        return SFTRow(encoded.token_ids, mask)


@dataclass(frozen=True)
class SFTResult:
    """What SFT made."""

    fit: FitResult
    held_out_loss: float | None
    """Mean loss per learned token on held-out demonstrations, in nats; null without any."""


def train_sft(
    path: str,
    demonstrations: Sequence[Demonstration],
    held_out: Sequence[Demonstration],
    settings: SFTSettings,
    output: Path,
    seed: int,
    storage: Path,
    on_progress: Callable[[StepReport], None],
    section: str = "sft",
) -> SFTResult:
    """Fine-tune the language model at `path`; arguments and errors as `supervised.fit`.

    Args:
        section: where the settings are in the recipe, for errors.

    Raises:
        InputError: there is no demonstration.
    """
    if not demonstrations:
        raise InputError("data", "no demonstrations", "at least one demonstration")
    task = SFTTask(path, demonstrations, held_out, settings, seed, section)
    result = fit(task, settings, output, seed, storage, on_progress)
    if not result.held_out:
        return SFTResult(result, None)
    loss, tokens = result.held_out_outputs.sum(axis=0, dtype=np.float64)
    return SFTResult(result, float(loss / tokens))


def _token_losses(model: PreTrainedModel, rows: Sequence[SFTRow]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each next token, and where it is learned; both float32 [B, L - 1]."""
    device = model.device
    lengths = [len(row.token_ids) for row in rows]
    ids = right_pad([row.token_ids for row in rows], fill=0).to(device)
    mask = length_mask(lengths).to(device)
    learned = right_pad([row.learned for row in rows], fill=0)[:, 1:].float().to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
    return losses * learned, learned
