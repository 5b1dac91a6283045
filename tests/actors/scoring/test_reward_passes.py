"""Free passes cost less than fixed ones and score alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayward.actors.models.loading import load_reward_model, sequence_scores
from rayward.actors.scoring.reward_passes import RewardPasses
from tests.serving import write_models
from tests.tiny import write_tiny_classifier

ROOM = 512


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> RewardPasses:
    models = write_models(tmp_path_factory.mktemp("models"))
    model = load_reward_model(str(models / "safety"), "float32", "path").eval()
    return RewardPasses(model, ROOM, 16384)


def tokens(seed: int, lengths: list[int]) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, size=length).tolist() for length in lengths]


def scores(
    passes: RewardPasses, sequences: list[list[int]], fixed: bool, max_tokens: int | None = None
) -> np.ndarray:
    found = np.full(len(sequences), np.nan, dtype=np.float32)
    for rows in passes.plan([len(one) for one in sequences], fixed, max_tokens):
        found[rows] = passes.run([sequences[row] for row in rows], fixed)
    return found


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, ROOM), min_size=1, max_size=12),
    max_tokens=st.sampled_from([16, 300, 1024, 16384]),
    seed=st.integers(0, 2**32 - 1),
)
def test_free_and_fixed_passes_score_alike(
    passes: RewardPasses, lengths: list[int], max_tokens: int, seed: int
) -> None:
    sequences = tokens(seed, lengths)
    fixed = scores(passes, sequences, fixed=True)
    assert np.abs(scores(passes, sequences, False, max_tokens) - fixed).max() <= 1e-6


def test_the_scores_are_large_enough_to_tell(passes: RewardPasses) -> None:
    found = scores(passes, tokens(0, list(range(1, 200))), fixed=True)
    assert found.min() < -5
    assert found.max() > 5


def test_a_free_pass_has_the_rows_there_are(passes: RewardPasses) -> None:
    """16, 16, 32, 48 padded tokens; of 40 in a pass two of 16 fit, and 48 go alone."""
    lengths = [16, 17, 1, 33, 9]
    assert passes.plan(lengths, False, max_tokens=40) == [[0, 2], [4], [1], [3]]
    assert passes.plan(lengths, False) == [[0, 2, 4], [1], [3]]
    assert passes.plan([5] * 20, True, max_tokens=40) == [
        [*range(8)],
        [*range(8, 16)],
        [*range(16, 20)],
    ]
    shapes = []
    model = passes._model
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        passes.run(tokens(0, [3, 16]), fixed=False)
        passes.run(tokens(0, [3, 16]), fixed=True)
        passes.run(tokens(0, [505]), fixed=False)
    finally:
        handle.remove()
    assert shapes == [(2, 16), (8, 16), (1, ROOM)]


def test_the_head_gives_equal_bits_for_any_number_of_rows(passes: RewardPasses) -> None:
    ids = torch.tensor(tokens(3, [16] * 20))
    mask = torch.ones_like(ids)
    whole = sequence_scores(passes._model, ids, mask, head_rows=8)
    for rows in (1, 2, 3, 7, 8, 9, 19):
        assert torch.equal(
            sequence_scores(passes._model, ids[:rows], mask[:rows], head_rows=8), whole[:rows]
        )
    plain = sequence_scores(passes._model, ids, mask)
    assert torch.allclose(plain, whole, atol=1e-5)


def test_an_encoder_scores_alike_too(tmp_path: Path) -> None:
    model = load_reward_model(str(write_tiny_classifier(tmp_path)), "float32", "path").eval()
    passes = RewardPasses(model, ROOM, 16384)
    generator = np.random.default_rng(0)
    sequences = [generator.integers(5, 50, size=n).tolist() for n in generator.integers(1, 90, 40)]
    fixed = scores(passes, sequences, fixed=True)
    assert np.ptp(fixed) > 1e-2
    assert np.abs(scores(passes, sequences, fixed=False) - fixed).max() <= 1e-6


def test_threads_are_set_where_they_are_said(passes: RewardPasses) -> None:
    before = torch.get_num_threads()
    try:
        passes.run(tokens(0, [3]), False, threads=2)
        assert torch.get_num_threads() == 2
        passes.run(tokens(0, [3]), False)
        assert torch.get_num_threads() == 2
        passes.run(tokens(0, [3]), False, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
