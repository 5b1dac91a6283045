import itertools

from hypothesis import given
from hypothesis import strategies as st

from rayward.actors.models.microbatches import (
    length_mask,
    microbatches_of_rank,
    plan_microbatches,
    right_pad,
    share_rows,
)

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


def test_a_worked_plan() -> None:
    assert plan_microbatches([2, 5, 3, 5, 9], max_tokens=10) == [[4], [1, 3], [2, 0]]


def test_no_rows_make_no_microbatch() -> None:
    assert plan_microbatches([], max_tokens=10) == []


@given(lengths=LENGTHS, max_tokens=st.integers(1, 120))
def test_every_row_once_and_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    plan = plan_microbatches(lengths, max_tokens)
    assert sorted(index for rows in plan for index in rows) == list(range(len(lengths)))
    for rows in plan:
        padded = len(rows) * max(lengths[index] for index in rows)
        assert padded <= max_tokens or len(rows) == 1
    for rows, following in itertools.pairwise(plan):
        # A microbatch ends only because the next row did not fit.
        assert (len(rows) + 1) * max(lengths[index] for index in rows) > max_tokens
        assert min(lengths[i] for i in rows) >= max(lengths[i] for i in following)


def test_worked_shares() -> None:
    lengths = [3, 9, 5, 4, 7, 6]
    # Every other row of the sorted 9 7 6 5 4 3 would give 9 + 6 + 4 = 19 and 7 + 5 + 3 = 15.
    # To whoever has least: 9 | 7; 6 to the 7; 5 to the 9; 4 to the 13; 3 to the 14.
    assert share_rows(lengths, 2) == [[1, 2, 0], [4, 5, 3]]  # 9 + 5 + 3 = 17 and 7 + 6 + 4 = 17
    assert share_rows(lengths, 1) == [[1, 4, 5, 2, 3, 0]]


def test_a_worked_share_in_microbatches() -> None:
    # One long row is as much as all the others: they go to the other rank.
    lengths = [8, 2, 2, 2, 2]
    assert microbatches_of_rank(lengths, 4, rank=0, ranks=2) == [([0], 1.0), ([1], 0.0)]
    assert microbatches_of_rank(lengths, 4, rank=1, ranks=2) == [([1, 2], 1.0), ([3, 4], 1.0)]
    assert microbatches_of_rank(lengths, 4, rank=0, ranks=1) == [
        ([0], 1.0),
        ([1, 2], 1.0),
        ([3, 4], 1.0),
    ]


@given(lengths=LENGTHS, ranks=st.integers(1, 6))
def test_shares_differ_by_no_more_than_the_longest_row(lengths: list[int], ranks: int) -> None:
    shares = share_rows(lengths, ranks)
    assert len(shares) == ranks
    assert sorted(index for share in shares for index in share) == list(range(len(lengths)))
    totals = [sum(lengths[index] for index in share) for share in shares]
    assert max(totals) - min(totals) <= max(lengths, default=0)
    dealt = [sum(sorted(lengths, reverse=True)[rank::ranks]) for rank in range(ranks)]
    assert max(totals) <= max(dealt)
    assert share_rows(lengths, ranks) == shares


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(1, 120))
def test_one_rank_takes_the_plain_plan(lengths: list[int], budget: int) -> None:
    whole = [(rows, 1.0) for rows in plan_microbatches(lengths, budget)]
    assert microbatches_of_rank(lengths, budget, rank=0, ranks=1) == whole


@given(
    padded=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    ranks=st.integers(1, 5),
    max_tokens=st.integers(1, 150),
)
def test_ranks_share_a_batch_in_equally_many_microbatches(
    padded: list[int], ranks: int, max_tokens: int
) -> None:
    plans = [microbatches_of_rank(padded, max_tokens, rank, ranks) for rank in range(ranks)]
    assert len({len(plan) for plan in plans}) == 1
    counted = [index for plan in plans for rows, weight in plan if weight == 1 for index in rows]
    assert sorted(counted) == list(range(len(padded)))
    for rows, weight in (microbatch for plan in plans for microbatch in plan):
        assert rows
        assert weight in (0, 1)
        assert len(rows) * max(padded[i] for i in rows) <= max_tokens or len(rows) == 1


@given(rows=st.lists(st.lists(st.integers(0, 9), max_size=9), min_size=1, max_size=8))
def test_padding_stands_behind_each_row(rows: list[list[int]]) -> None:
    lengths = [len(row) for row in rows]
    padded, mask = right_pad(rows, fill=-7), length_mask(lengths)
    assert padded.shape == mask.shape == (len(rows), max(lengths))
    for row, length, ids, attended in zip(rows, lengths, padded, mask, strict=True):
        assert ids.tolist() == row + [-7] * (max(lengths) - length)
        assert attended.tolist() == [1] * length + [0] * (max(lengths) - length)
