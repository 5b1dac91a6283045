"""A reward model: conversations in, one logit each out; safety and helpfulness are two of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from actors.chat import decode_response, encode_answered, require_template
from actors.microbatches import length_mask, part_of, right_pad
from actors.model_kinds import positions
from actors.models import (
    ignores_padding,
    load_reward_model,
    load_tokenizer,
    read_tokenizer,
    sequence_scores,
    speak_alike,
    weights_digest,
)
from cluster.config.roles import RewardRole
from cluster.errors import InputError, UnscoredError
from cluster.types import Float32Array, Rollout

RewardName = Literal["safety", "helpfulness", "judge"]

# Lengths are padded to a multiple of this, and so many rows share a forward pass.
_BUCKET = 16
_ROWS = 8


class RewardModel:
    """Scores whole conversations.

    A model that speaks the policy's tokens reads them as they are. Any other gets the text and
    puts it through its own tokenizer and chat template.

    Args:
        role: what it judges; names it in errors.
        path: a transformers directory or hub id of a sequence classifier with one output.
        settings: the role's settings.
        policy_path: where the policy's tokenizer is.
    """

    def __init__(self, role: RewardName, path: str, settings: RewardRole, policy_path: str) -> None:
        torch.set_num_threads(settings.resources.threads)
        self._role = role
        self._settings = settings
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_reward_model(path, settings.precision, f"{section_of(role)}.path")
        nn.Module.to(self._model, device).requires_grad_(False).eval()
        self._tokenizer = load_reward_tokenizer(role, path, settings)
        self._policy_tokenizer = load_tokenizer(policy_path, "ppo.policy.path")
        self._same_tokens = speak_alike(self._tokenizer, self._policy_tokenizer)
        self._room = longest_input(self._model, None if self._same_tokens else self._tokenizer)
        self._pads = ignores_padding(self._model)

    def score(self, rollouts: Sequence[Rollout], part: int = 0, parts: int = 1) -> Float32Array:
        """Score rollouts: N of them -> float32 [N] logits.

        Of `parts` replicas that share the rollouts, this one takes its `part`.

        Raises:
            UnscoredError: a conversation is longer than the model can read, or a score is not
                finite. It never becomes a number.
        """
        own = part_of(rollouts, part, parts)
        return self.score_tokens([self._own_tokens(rollout) for rollout in own])

    @torch.no_grad()
    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> Float32Array:
        """Score N token sequences of this model's own tokenizer -> float32 [N] logits.

        A sequence's score is the same, bit for bit, whatever it is scored with: every forward
        pass has a shape that depends on nothing but the sequence's own length.

        Raises:
            UnscoredError: as `score`.
        """
        self._require_room([len(sequence) for sequence in sequences])
        scores = np.full(len(sequences), np.nan, dtype=np.float32)
        for length, rows in self._passes(sequences):
            own = [len(sequences[row]) for row in rows]
            ids = right_pad(
                [[*sequences[row], *[0] * (length - n)] for row, n in zip(rows, own, strict=True)],
                0,
            )
            mask = length_mask([*own, length])[:-1]
            device = self._model.device
            scores[rows] = sequence_scores(self._model, ids.to(device), mask.to(device)).cpu()
        unscored = int((~np.isfinite(scores)).sum())
        if unscored:
            raise UnscoredError(f"{self._role}: {unscored} of {len(scores)} scores are not finite")
        return scores

    def digest(self) -> str:
        """A hash of all weights."""
        return weights_digest(self._model)

    def _own_tokens(self, rollout: Rollout) -> list[int]:
        if self._same_tokens:
            return rollout.token_ids.tolist()
        text = decode_response(self._policy_tokenizer, rollout.response_ids.tolist())
        ended = rollout.finish_reason == "stop"
        return encode_answered(self._tokenizer, rollout.prompt.messages, text, ended)

    def _require_room(self, lengths: Sequence[int]) -> None:
        over = [length for length in lengths if self._room is not None and length > self._room]
        if over:
            raise UnscoredError(
                f"{self._role}: {len(over)} of {len(lengths)} conversations are longer than the "
                f"model's {self._room} tokens; the longest has {max(over)}"
            )

    def _passes(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
        """Padded length and rows of each forward pass.

        A pass that is not full repeats its last row. A model that padding would mislead reads
        one row at a time.
        """
        if not self._pads:
            yield from ((len(sequence), [row]) for row, sequence in enumerate(sequences))
            return
        buckets: dict[int, list[int]] = {}
        for row, sequence in enumerate(sequences):
            length = -(-len(sequence) // _BUCKET) * _BUCKET
            # Not beyond the last position that there is: an embedding knows no other.
            length = length if self._room is None else min(length, self._room)
            buckets.setdefault(length, []).append(row)
        for length, members in sorted(buckets.items()):
            size = max(1, min(_ROWS, self._settings.max_tokens_per_microbatch // length))
            for start in range(0, len(members), size):
                rows = members[start : start + size]
                yield length, rows + rows[-1:] * (size - len(rows))


def section_of(role: RewardName) -> str:
    """Where a reward model's settings are in a recipe."""
    return "evaluation.judge" if role == "judge" else f"ppo.{role}"


def load_reward_tokenizer(
    role: RewardName, path: str, settings: RewardRole
) -> PreTrainedTokenizerBase:
    """Load a reward model's tokenizer, with the chat template that the settings name, if any.

    Raises:
        InputError: there is no tokenizer, no chat template, or one that writes no conversation.
    """
    section = section_of(role)
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
