"""A reward model: conversations in, one logit each out; safety and helpfulness are two of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayward.actors.models.kinds import positions
from rayward.actors.models.loading import (
    load_reward_model,
    load_tokenizer,
    read_tokenizer,
    weights_digest,
)
from rayward.actors.models.microbatches import part_of
from rayward.actors.scoring.packed_linear import pack_linears
from rayward.actors.scoring.reward_encoding import RewardEncoder
from rayward.actors.scoring.reward_passes import RewardPasses
from rayward.actors.text.chat import require_template
from rayward.cluster.config.roles import RewardRole
from rayward.cluster.errors import InputError, UnscoredError
from rayward.cluster.types import Float32Array, Rollout

RewardName = Literal["safety", "helpfulness", "judge"]


class RewardModel:
    """Scores whole conversations.

    Args:
        role: what it judges; names it in errors.
        path: a transformers directory or hub id of a sequence classifier with one output.
        settings: the role's settings.
        policy_path: where the policy's tokenizer is. None: no policy's answers in particular are
            scored, and every conversation goes through the model's own chat template.
        section: where its settings are, for errors; that of a recipe if it is not given.
        policy_field: what names the policy, for errors.

    Attributes:
        encoder: makes its tokens.
        passes: plans and runs its forward passes.
        room: the most tokens that it reads; None: no limit is known.
    """

    def __init__(
        self,
        role: RewardName,
        path: str,
        settings: RewardRole,
        policy_path: str | None,
        section: str | None = None,
        policy_field: str = "ppo.policy.path",
    ) -> None:
        torch.set_num_threads(settings.resources.threads)
        self._role = role
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        field = f"{section or section_of(role)}.path"
        self._model = load_reward_model(path, settings.precision, field)
        nn.Module.to(self._model, device).requires_grad_(False).eval()
        if device.type == "cpu" and settings.precision == "float32":
            pack_linears(self._model)
        tokenizer = load_reward_tokenizer(role, path, settings, section)
        self.encoder = RewardEncoder(
            tokenizer,
            None if policy_path is None else load_tokenizer(policy_path, policy_field),
        )
        self.room = longest_input(self._model, None if self.encoder.same_tokens else tokenizer)
        self.passes = RewardPasses(self._model, self.room, settings.max_tokens_per_microbatch)

    def score(self, rollouts: Sequence[Rollout], part: int = 0, parts: int = 1) -> Float32Array:
        """Score rollouts: N of them -> float32 [N] logits.

        Of `parts` replicas that share the rollouts, this one takes its `part`.

        Raises:
            UnscoredError: a conversation is longer than the model can read, or a score is not
                finite. It never becomes a number.
        """
        own = part_of(rollouts, part, parts)
        return self.score_tokens([self.encoder.rollout(rollout) for rollout in own])

    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> Float32Array:
        """Score N token sequences of this model's own tokenizer -> float32 [N] logits.

        A sequence's score is the same, bit for bit, whatever it is scored with: every forward
        pass has a shape that depends on nothing but the sequence's own length.

        Raises:
            UnscoredError: as `score`.
        """
        lengths = [len(sequence) for sequence in sequences]
        self._require_room(lengths)
        scores = np.full(len(sequences), np.nan, dtype=np.float32)
        for rows in self.passes.plan(lengths, fixed=True):
            scores[rows] = self.passes.run([sequences[row] for row in rows], fixed=True)
        unscored = int((~np.isfinite(scores)).sum())
        if unscored:
            raise UnscoredError(f"{self._role}: {unscored} of {len(scores)} scores are not finite")
        return scores

    def digest(self) -> str:
        """A hash of all weights."""
        return weights_digest(self._model)

    def _require_room(self, lengths: Sequence[int]) -> None:
        over = [length for length in lengths if self.room is not None and length > self.room]
        if over:
            raise UnscoredError(
                f"{self._role}: {len(over)} of {len(lengths)} conversations are longer than the "
                f"model's {self.room} tokens; the longest has {max(over)}"
            )


def section_of(role: RewardName) -> str:
    """Where a reward model's settings are in a recipe."""
    return "evaluation.judge" if role == "judge" else f"ppo.{role}"


def load_reward_tokenizer(
    role: RewardName, path: str, settings: RewardRole, section: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a reward model's tokenizer, with the chat template that the settings name, if any.

    Args:
        section: where the settings are, for errors; that of a recipe if it is not given.

    Raises:
        InputError: there is no tokenizer, no chat template, or one that writes no conversation.
    """
    section = section or section_of(role)
    tokenizer = read_tokenizer(path, f"{section}.path")
    field, source = f"{section}.path", path
    if settings.chat_template is not None:
        field, source = f"{section}.chat_template", settings.chat_template
        try:
            tokenizer.chat_template = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(field, source, f"a readable Jinja file ({error})") from error
    if tokenizer.chat_template is None:
        raise InputError(
            f"{section}.chat_template",
            None,
            f"a Jinja file, because the tokenizer of {path} has no chat template",
        )
    require_template(tokenizer, field, source)
    return tokenizer


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The most tokens that a model reads, by its positions and by its tokenizer, if it uses one.

    None: no limit is known.
    """
    limits = [positions(model.config)]
    if tokenizer is not None:
        limits.append(tokenizer.model_max_length)
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding's.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            first = -1 if module.padding_idx is None else module.padding_idx
            limits.append(module.num_embeddings - first - 1)
    return min((limit for limit in limits if limit is not None), default=None)
