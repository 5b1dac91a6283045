"""Training of the safety and the helpfulness reward model (Llama 2, section 3.2.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayward.actors.learning.ranking import auxiliary_safety_loss, margin_of, ranking_loss
from rayward.actors.models.loading import load_scalar_model, load_tokenizer, sequence_scores
from rayward.actors.models.microbatches import length_mask, right_pad
from rayward.actors.text.chat import encode_prompt, encode_response
from rayward.cluster.config.roles import Precision
from rayward.cluster.config.supervised import RewardTrainingSettings, SafetyRewardSettings
from rayward.cluster.errors import InputError
from rayward.cluster.records.reward_models import RewardModelEvaluation, SafetyCalibration
from rayward.cluster.stages import reward_stage
from rayward.cluster.types import Axis, PreferencePair
from rayward.pipelines.supervised.accuracy import evaluate_reward_model
from rayward.pipelines.supervised.calibration import calibrate_safety
from rayward.pipelines.supervised.fit import FitResult, fit
from rayward.pipelines.supervised.loop import StepReport, SupervisedTask


@dataclass(frozen=True)
class PairRow:
    """An encoded pair."""

    chosen_ids: list[int]
    rejected_ids: list[int]
    margin: float
    chosen_safe: bool | None
    rejected_safe: bool | None

    @property
    def longest(self) -> int:
        """Tokens in the longer of the two conversations."""
        return max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def padded(self) -> int:
        """Tokens in both, padded to the longer."""
        return 2 * self.longest

    @property
    def tokens(self) -> int:
        """Tokens in both."""
        return len(self.chosen_ids) + len(self.rejected_ids)

    @property
    def labels(self) -> int:
        """How many of the two responses have a safety label."""
        return sum(safe is not None for safe in (self.chosen_safe, self.rejected_safe))


@dataclass(frozen=True)
class RewardTask(SupervisedTask[PairRow]):
    """Rank pairs; the safety model also learns the responses' safety labels.

    A batch's loss is the mean ranking loss over its pairs, plus `auxiliary_weight` times the mean
    cross-entropy over its labelled responses.
    """

    measures: ClassVar[tuple[str, ...]] = ("ranking_loss", "auxiliary_loss", "accuracy")

    path: str
    axis: Axis
    pairs: Sequence[PreferencePair]
    held_out: Sequence[PreferencePair]
    settings: RewardTrainingSettings
    seed: int

    @property
    def section(self) -> str:
        """That of the axis's stage."""
        return reward_stage(self.axis)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the model at `path`."""
        return load_tokenizer(self.path)

    def load_model(self, precision: Precision) -> PreTrainedModel:
        """The model at `path`, with a regression head."""
        return load_scalar_model(self.path, precision, self.seed)

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> list[PairRow]:
        """The pairs of the mix, encoded."""
        return [self._encode(tokenizer, pair) for pair in self.pairs]

    def held_out_rows(self, tokenizer: PreTrainedTokenizerBase) -> list[PairRow]:
        """The held-out pairs, encoded."""
        return [self._encode(tokenizer, pair) for pair in self.held_out]

    def totals(self, rows: Sequence[PairRow]) -> tuple[float, ...]:
        """Pairs and labelled responses."""
        return float(len(rows)), float(sum(row.labels for row in rows))

    def loss(
        self, model: PreTrainedModel, rows: Sequence[PairRow], totals: tuple[float, ...]
    ) -> Tensor:
        """Loss, ranking loss, auxiliary loss and accuracy, [4]."""
        pairs, labels = totals
        chosen, rejected = self.outputs(model, rows).unbind(dim=1)
        margins = torch.tensor([row.margin for row in rows], device=chosen.device)
        ranking = ranking_loss(chosen, rejected, margins).sum() / pairs
        auxiliary = torch.zeros_like(ranking)
        if self._auxiliary_weight and labels:
            auxiliary = _auxiliary_sum(chosen, rejected, rows) / labels
        loss = ranking + self._auxiliary_weight * auxiliary
        right = (chosen > rejected).sum() / pairs
        return torch.stack([loss, ranking.detach(), auxiliary.detach(), right])

    def outputs(self, model: PreTrainedModel, rows: Sequence[PairRow]) -> Tensor:
        """Scores of the chosen and the rejected response, logits, float32 [rows, 2]."""
        sequences = [row.chosen_ids for row in rows] + [row.rejected_ids for row in rows]
        ids = right_pad(sequences, fill=0).to(model.device)
        mask = length_mask([len(sequence) for sequence in sequences]).to(model.device)
        return sequence_scores(model, ids, mask).view(2, len(rows)).T

    @property
    def _auxiliary_weight(self) -> float:
        settings = self.settings
        return settings.auxiliary_weight if isinstance(settings, SafetyRewardSettings) else 0.0

    def _encode(self, tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> PairRow:
        prompt_ids = encode_prompt(tokenizer, pair.prompt.messages)
        return PairRow(
            chosen_ids=prompt_ids + encode_response(tokenizer, pair.chosen),
            rejected_ids=prompt_ids + encode_response(tokenizer, pair.rejected),
            margin=margin_of(pair.rating, self.settings.margin),
            chosen_safe=pair.chosen_safe,
            rejected_safe=pair.rejected_safe,
        )


@dataclass(frozen=True)
class MixCounts:
    """What a reward model's training mix is made of, in pairs."""

    own: int
    """Pairs of the model's own axis."""
    other: int
    """Pairs of the other axis."""
    other_missing: int
    """Pairs of the other axis that the mix asks for and the data lacks."""
    unsafe_chosen: int
    """Left out of the data, because the chosen response is unsafe and the rejected one safe."""
    auxiliary_skipped_pairs: int
    """Safety model: pairs without any safety label, which its auxiliary loss skips."""


@dataclass(frozen=True)
class RewardTrainingResult:
    """What reward training made."""

    fit: FitResult
    mix: MixCounts
    held_out_unsafe_chosen: int
    """Held-out pairs of the model's axis that were left out as in training."""
    held_out_left_out: int
    """Held-out pairs of the model's axis that were too long to be measured."""
    evaluation: RewardModelEvaluation | None
    """On held-out pairs of the model's own axis; null without any."""
    safety_calibration: SafetyCalibration | None
    """Safety model: its scores against held-out labels; null without any."""


def mix_pairs(
    pairs: Sequence[PreferencePair], axis: Axis, settings: RewardTrainingSettings, seed: int
) -> tuple[list[PreferencePair], MixCounts]:
    """Choose what a reward model learns from (Llama 2, section 3.2.2).

    All pairs of its own axis, and pairs of the other drawn without replacement, so many that
    `own_share` of the mix is its own.

    Raises:
        InputError: there is no pair of the model's own axis.
    """
    kept = [pair for pair in pairs if not _prefers_unsafe(pair)]
    own = [pair for pair in kept if pair.axis == axis]
    other = [pair for pair in kept if pair.axis != axis]
    if not own:
        raise InputError("data", f"no {axis} pairs", f"at least one {axis} preference pair")
    ratio = (1 - settings.own_share) / settings.own_share
    wanted = round(ratio * len(own))
    taken = min(wanted, len(other))
    drawn = np.random.default_rng(seed).choice(len(other), size=taken, replace=False)
    mix = own + [other[index] for index in sorted(drawn.tolist())]
    unlabelled = sum(pair.chosen_safe is None and pair.rejected_safe is None for pair in mix)
    return mix, MixCounts(
        own=len(own),
        other=taken,
        other_missing=wanted - taken,
        unsafe_chosen=len(pairs) - len(kept),
        auxiliary_skipped_pairs=unlabelled if axis == "safety" else 0,
    )


def train_reward_model(
    path: str,
    axis: Axis,
    pairs: Sequence[PreferencePair],
    held_out: Sequence[PreferencePair],
    settings: RewardTrainingSettings,
    output: Path,
    seed: int,
    storage: Path,
    on_progress: Callable[[StepReport], None],
) -> RewardTrainingResult:
    """Train the reward model of one axis from the model at `path`, and measure it.

    Args:
        pairs: of both axes; see `mix_pairs`.
        held_out: of both axes; the model is measured on those of its own.

    Further arguments and errors as `supervised.fit` and `mix_pairs`.
    """
    mix, counts = mix_pairs(pairs, axis, settings, seed)
    own = [pair for pair in held_out if pair.axis == axis]
    unseen = [pair for pair in own if not _prefers_unsafe(pair)]
    task = RewardTask(path, axis, mix, unseen, settings, seed)
    result = fit(task, settings, output, seed, storage, on_progress)
    scored = [
        (unseen[index], float(chosen), float(rejected))
        for index, (chosen, rejected) in zip(result.held_out, result.held_out_outputs, strict=True)
    ]
    return RewardTrainingResult(
        fit=result,
        mix=counts,
        held_out_unsafe_chosen=len(own) - len(unseen),
        held_out_left_out=len(unseen) - len(scored),
        evaluation=evaluate_reward_model(axis, scored) if scored else None,
        safety_calibration=calibrate_safety(scored) if axis == "safety" else None,
    )


def _prefers_unsafe(pair: PreferencePair) -> bool:
    return pair.chosen_safe is False and pair.rejected_safe is True


def _auxiliary_sum(chosen: Tensor, rejected: Tensor, rows: Sequence[PairRow]) -> Tensor:
    labels = [row.chosen_safe for row in rows] + [row.rejected_safe for row in rows]
    labelled = torch.tensor([label is not None for label in labels], device=chosen.device)
    is_safe = torch.tensor([label is True for label in labels], device=chosen.device)
    losses = auxiliary_safety_loss(torch.cat([chosen, rejected]), is_safe)
    return (losses * labelled).sum()
