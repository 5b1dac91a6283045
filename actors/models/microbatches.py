"""Cutting a batch of uneven sequences into padded microbatches under a token budget."""

import heapq
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_Row = TypeVar("_Row")
TokenIds = Sequence[int] | npt.NDArray[np.int64]


def plan_microbatches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group rows of like length, the longest first, so that memory runs out at once or never.

    Args:
        lengths: tokens per row.
        max_tokens: padded tokens (rows times the longest row) per microbatch, at most. A row
            that is longer than that gets a microbatch of its own.

    Returns:
        Row indices per microbatch; every row is in exactly one. Depends on nothing but the
        arguments.
    """
    plan: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if plan and (len(plan[-1]) + 1) * longest <= max_tokens:
            plan[-1].append(index)
        else:
            plan.append([index])
            longest = lengths[index]
    return plan


def share_rows(tokens: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal rows to ranks, the longest first, each to the rank that has the fewest tokens.

    The totals differ by no more than the longest row (Graham 1969).

    Args:
        tokens: tokens per row.

    Returns:
        Row indices per rank, the longest first; every row is in exactly one.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    totals = [(0, rank) for rank in range(ranks)]  # a heap: the smallest total is the first
    for index in sorted(range(len(tokens)), key=lambda index: (-tokens[index], index)):
        total, rank = totals[0]
        shares[rank].append(index)
        heapq.heapreplace(totals, (total + tokens[index], rank))
    return shares


def microbatches_of_rank(
    padded: Sequence[int], max_tokens: int, rank: int, ranks: int
) -> list[tuple[list[int], float]]:
    """One rank's share of a batch.

    Args:
        padded: padded tokens of each row of the whole batch.

    Returns:
        Row indices and the weight of each microbatch. Every rank gets equally many, because the
        ranks' collectives must pair up; what is missing is filled with rows of weight 0.
    """
    shares = share_rows(padded, ranks)
    plans = [plan_microbatches([padded[index] for index in share], max_tokens) for share in shares]
    mine = [([shares[rank][index] for index in rows], 1.0) for rows in plans[rank]]
    filler = ([min(range(len(padded)), key=padded.__getitem__)], 0.0)
    return mine + [filler] * (max(map(len, plans)) - len(mine))


def part_of(rows: Sequence[_Row], part: int, parts: int) -> Sequence[_Row]:
    """The `part`th of `parts` contiguous pieces, which differ by at most one row."""
    return rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]


def right_pad(sequences: Sequence[TokenIds], fill: int) -> Tensor:
    """Stack rows of ids, int64 [B, L], with `fill` behind each row's end."""
    longest = max((len(sequence) for sequence in sequences), default=0)
    padded = np.full((len(sequences), longest), fill, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return torch.from_numpy(padded)


def length_mask(lengths: Sequence[int]) -> Tensor:
    """The attention mask of right-padded rows, int64 [B, L]: 1 on tokens, 0 on padding."""
    positions = torch.arange(max(lengths, default=0))
    return (positions < torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)).long()
