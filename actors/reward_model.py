"""A reward model: conversations in, one logit each out; safety and helpfulness are two of it."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from actors.chat import decode_response, encode_conversation
from actors.microbatches import length_mask, part_of, right_pad
from actors.models import (
    load_scalar_model,
    load_tokenizer,
    sequence_scores,
    speak_alike,
    weights_digest,
)
from cluster.config.roles import ScoringRole
from cluster.errors import UnscoredError
from cluster.types import Float32Array, Rollout

# Lengths are padded to a multiple of this, and so many rows share a forward pass.
_BUCKET = 16
_ROWS = 8


class RewardModel:
    """Scores whole conversations.

    A model that speaks the policy's tokens reads them as they are. Any other gets the text and
    puts it through its own tokenizer and chat template.

    Args:
        role: what it judges; names it in errors.
        path: a transformers directory or hub id with one output.
        settings: the role's settings.
        policy_path: where the policy's tokenizer is.
    """

    def __init__(
        self,
        role: Literal["safety", "helpfulness", "judge"],
        path: str,
        settings: ScoringRole,
        policy_path: str,
    ) -> None:
        torch.set_num_threads(settings.resources.threads)
        self._role = role
        self._settings = settings
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        field = "evaluation.judge.path" if role == "judge" else f"ppo.{role}.path"
        self._model = load_scalar_model(path, settings.precision, seed=0, field=field)
        nn.Module.to(self._model, device).requires_grad_(False).eval()
        self._tokenizer = load_tokenizer(path, field)
        self._policy_tokenizer = load_tokenizer(policy_path, "ppo.policy.path")
        self._same_tokens = speak_alike(self._tokenizer, self._policy_tokenizer)

    def score(self, rollouts: Sequence[Rollout], part: int = 0, parts: int = 1) -> Float32Array:
        """Score rollouts: N of them -> float32 [N] logits.

        Of `parts` replicas that share the rollouts, this one takes its `part`.

        Raises:
            UnscoredError: a score is not finite. It never becomes a number.
        """
        own = part_of(rollouts, part, parts)
        return self.score_tokens([self._own_tokens(rollout) for rollout in own])

    @torch.no_grad()
    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> Float32Array:
        """Score N token sequences of this model's own tokenizer -> float32 [N] logits.

        A sequence's score is the same, bit for bit, whatever it is scored with: every forward
        pass has a shape that depends on nothing but the sequence's own length.
        """
        scores = np.full(len(sequences), np.nan, dtype=np.float32)
        for length, rows in _passes(sequences, self._settings.max_tokens_per_microbatch):
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
        tokens = encode_conversation(self._tokenizer, rollout.prompt.messages, text).token_ids
        # An answer that was cut short must not look as if it had ended.
        return tokens if rollout.finish_reason == "stop" else tokens[:-1]


def _passes(sequences: Sequence[Sequence[int]], max_tokens: int) -> Iterator[tuple[int, list[int]]]:
    """Padded length and rows of each forward pass; a pass that is not full repeats its last row."""
    buckets: dict[int, list[int]] = {}
    for row, sequence in enumerate(sequences):
        buckets.setdefault(-(-len(sequence) // _BUCKET) * _BUCKET, []).append(row)
    for length, members in sorted(buckets.items()):
        size = max(1, min(_ROWS, max_tokens // length))
        for start in range(0, len(members), size):
            rows = members[start : start + size]
            yield length, rows + rows[-1:] * (size - len(rows))
