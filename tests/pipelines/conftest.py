"""Sessions that several test files ask, started once."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayward.actors.models.loading import load_scalar_model, load_tokenizer, save_model
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.types import AXES
from tests.tiny import write_tiny, write_tiny_llama

if TYPE_CHECKING:
    from rayward.actors.sampling.policy_session import PolicySession

BENCHMARK_MODEL_LEN = 900


@pytest.fixture(scope="session")
def benchmark_session(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["PolicySession"]:
    """A byte-level policy that never changes, with room for TruthfulQA's primer and an answer."""
    # Not above: it loads vLLM, which no other test of this folder needs.
    from rayward.actors.sampling.policy_session import PolicySession

    policy = write_tiny(tmp_path_factory.mktemp("policy"), "llama", max_position_embeddings=2048)
    with PolicySession(str(policy), PPOSettings(), {}, BENCHMARK_MODEL_LEN, seed=0) as session:
        yield session


@pytest.fixture(scope="session")
def both_session(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["PolicySession"]:
    """A byte-level policy that never changes, and two reward models that read its tokens."""
    from rayward.actors.sampling.policy_session import PolicySession

    policy = write_tiny_llama(tmp_path_factory.mktemp("policy"))
    tokenizer = load_tokenizer(str(policy))
    paths = {}
    for seed, axis in enumerate(AXES):
        paths[axis] = str(tmp_path_factory.mktemp(axis))
        save_model(load_scalar_model(str(policy), "float32", seed), tokenizer, Path(paths[axis]))
    with PolicySession(str(policy), PPOSettings(), paths, 512, seed=0) as session:
        yield session
