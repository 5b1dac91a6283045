"""A reward model's forward passes: which sequences share one, and how it is padded.

Two ways. Fixed: a pass has a shape that depends on nothing but the length of its sequences, so that
equal sequences get equal bits whatever they are scored with; rows that are missing are filled up.
Free: a pass has the rows that there are. Its sequences are still padded to their own length's
multiple of 16, and nothing is done twice: in float32 on CPUs the same bits where they were compared
(AMD, MKL), and the same to rounding anywhere.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from rayward.actors.models.loading import ignores_padding, sequence_scores
from rayward.actors.models.microbatches import length_mask, right_pad
from rayward.cluster.types import Float32Array

# Lengths are padded to a multiple of this, and so many rows share a fixed pass.
_BUCKET = 16
_ROWS = 8


class RewardPasses:
    """Plans and runs forward passes of a reward model.

    Args:
        model: as `load_reward_model` returns it.
        room: the longest sequence that it reads; None: no limit is known.
        max_tokens: padded tokens in one pass, at most; a longer sequence goes alone.
    """

    def __init__(self, model: PreTrainedModel, room: int | None, max_tokens: int) -> None:
        self._model = model
        self._room = room
        self._max_tokens = max_tokens
        self._pads = ignores_padding(model)

    @property
    def wants_fixed(self) -> bool:
        """Whether company in a free pass may change more of a score than its last bits: on GPUs,
        and in bfloat16."""
        return self._model.device.type != "cpu" or self._model.dtype != torch.float32

    def plan(
        self, lengths: Sequence[int], fixed: bool, max_tokens: int | None = None
    ) -> list[list[int]]:
        """Which sequences share a forward pass.

        Args:
            lengths: tokens of each sequence.
            fixed: whether every pass has a fixed shape.
            max_tokens: a tighter limit on the padded tokens of a free pass.

        Returns:
            Indices per pass, at least one in each; every sequence is in exactly one.
        """
        if not self._pads:
            # Padding would mislead it: one row at a time.
            return [[index] for index in range(len(lengths))]
        most = min(self._max_tokens, max_tokens or self._max_tokens)
        buckets: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            buckets.setdefault(self._padded(length), []).append(index)
        return [
            members[start : start + size]
            for length, members in sorted(buckets.items())
            for size in [self._rows(length) if fixed else max(1, most // length)]
            for start in range(0, len(members), size)
        ]

    @torch.no_grad()
    def run(
        self, sequences: Sequence[Sequence[int]], fixed: bool, threads: int | None = None
    ) -> Float32Array:
        """Score N token sequences that `plan` put into one pass: float32 [N] logits.

        They may be not finite.

        Args:
            threads: intra-op threads, from here on in the thread that calls. None: as before.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        own = [len(sequence) for sequence in sequences]
        length = self._padded(max(own))
        # A fixed pass that is not full repeats its last row.
        missing = self._rows(length) - len(own) if fixed else 0
        rows = [*sequences, *[sequences[-1]] * missing]
        # The last row is there for its length alone.
        ids = right_pad([*rows, [0] * length], 0)[:-1]
        mask = length_mask([*map(len, rows), length])[:-1]
        device = self._model.device
        scores = sequence_scores(self._model, ids.to(device), mask.to(device), head_rows=_ROWS)
        result: Float32Array = scores.cpu().numpy()[: len(own)]
        return result

    def _padded(self, length: int) -> int:
        """What a sequence is padded to, by itself."""
        if not self._pads:
            return length
        padded = -(-length // _BUCKET) * _BUCKET
        # Not beyond the last position that there is: an embedding knows no other.
        return padded if self._room is None else min(padded, self._room)

    def _rows(self, length: int) -> int:
        """Rows of a fixed pass over sequences of this padded length."""
        return max(1, min(_ROWS, self._max_tokens // length)) if self._pads else 1
