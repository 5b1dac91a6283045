import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.microbatches import length_mask, plan_microbatches, right_pad

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


def test_a_worked_plan() -> None:
    assert plan_microbatches([2, 5, 3, 5, 9], max_tokens=10) == [[4], [1, 3], [2, 0]]


def test_no_rows_make_no_microbatch() -> None:
    assert plan_microbatches([], max_tokens=10) == []


@settings(deadline=None)
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


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 9), max_size=9), min_size=1, max_size=8))
def test_padding_stands_behind_each_row(rows: list[list[int]]) -> None:
    lengths = [len(row) for row in rows]
    padded, mask = right_pad(rows, fill=-7), length_mask(lengths)
    assert padded.shape == mask.shape == (len(rows), max(lengths))
    for row, length, ids, attended in zip(rows, lengths, padded, mask, strict=True):
        assert ids.tolist() == row + [-7] * (max(lengths) - length)
        assert attended.tolist() == [1] * length + [0] * (max(lengths) - length)
