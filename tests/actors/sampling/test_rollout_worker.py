"""vLLM engines: alone, two of them, and one that is split over two processes; and which version."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.actor import ActorHandle
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, WeightVersionSpan

from rayward.actors.learning.weight_sync import open_sync
from rayward.actors.models.loading import load_causal_lm
from rayward.actors.sampling.rollout_worker import RolloutWorker, rollout_environment
from rayward.actors.sharding import deal
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.roles import RolloutRole
from rayward.cluster.errors import StaleEngineError
from rayward.cluster.types import Message, Prompt, Rollout
from tests.tiny import write_tiny_llama

COUNT = 24
SAMPLING = SamplingSettings(max_prompt_tokens=16, max_response_tokens=12)


def start(model: Path, tensor_parallel_size: int, version: int | None) -> ActorHandle:
    settings = RolloutRole(tensor_parallel_size=tensor_parallel_size)
    environment = {"OMP_NUM_THREADS": "1", **rollout_environment(settings)}
    actor: Any = ray.remote(RolloutWorker)
    return actor.options(num_cpus=1, runtime_env={"env_vars": environment}).remote(
        model=str(model),
        settings=settings,
        max_model_len=64,
        eos_token_id=1,
        seed=0,
        version=version,
    )


def answers(workers: list[ActorHandle], version: int) -> list[Rollout]:
    prompts = [
        Prompt(str(i), (Message("user", "x"),), None, None, False, False, "test")
        for i in range(COUNT)
    ]
    tokens = [list(range(5 + i, 8 + i + i % 5)) for i in range(COUNT)]
    shards = deal(workers)(prompts, tokens, list(range(COUNT)), SAMPLING, version)
    return [rollout for shard in ray.get(shards) for rollout in shard]


def assert_alike(one: list[Rollout], other: list[Rollout]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert a.sampler_logprobs == pytest.approx(b.sampler_logprobs, abs=1e-5)


@pytest.fixture(scope="module")
def workers(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[ActorHandle]]:
    """Two whole engines and a split one, all with the weights of seed 0 as version 0."""
    model = write_tiny_llama(tmp_path_factory.mktemp("model"))
    started = [start(model, size, version=0) for size in (1, 1, 2)]
    ray.get([worker.version.remote() for worker in started])
    yield started
    for worker in started:
        ray.kill(worker)


@pytest.mark.slow
def test_two_workers_give_the_tokens_of_one(workers: list[ActorHandle]) -> None:
    one, two = answers(workers[:1], 0), answers(workers[:2], 0)
    assert_alike(one, two)
    assert len({tuple(rollout.token_ids.tolist()) for rollout in one}) == COUNT


@pytest.mark.slow
def test_continuations_have_the_logprobs_that_transformers_gives(
    workers: list[ActorHandle], tmp_path: Path
) -> None:
    """At temperature 1, whatever was sampled before; and with the engine's longest sequence."""
    random = np.random.default_rng(0)
    sequences = [random.integers(5, 250, n).tolist() for n in (2, 3, 30, 63, 63)]
    starts = [1, 1, 12, 62, 1]
    model = load_causal_lm(str(write_tiny_llama(tmp_path)), "float32").eval()
    tables = []
    for ids in sequences:
        with torch.no_grad():
            tables.append(model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy())
    for worker in (workers[0], workers[2]):
        found: Any = ray.get(worker.continuation_logprobs.remote(sequences, starts))
        for ids, start, table, own in zip(sequences, starts, tables, found, strict=True):
            expected = [table[at - 1, ids[at]] for at in range(start, len(ids))]
            assert own.dtype == np.float32
            assert own == pytest.approx(expected, abs=1e-5)
    for ids, start in (([5, 6], 0), ([5, 6], 2), ([5] * 64, 1)):
        with pytest.raises(ValueError, match=f"starts at {start} of {len(ids)} .* < 64"):
            ray.get(workers[0].continuation_logprobs.remote([ids], [start]))


@pytest.mark.slow
def test_a_split_engine_samples_and_takes_new_weights(
    workers: list[ActorHandle], tmp_path: Path
) -> None:
    before = answers(workers[:1], 0)
    assert_alike(before, answers(workers[2:], 0))
    model = load_causal_lm(str(write_tiny_llama(tmp_path, seed=1)), "float32")
    client, trainer = open_sync(RolloutRole(), workers, model, rank=0)
    client.version = 1
    trainer.send_weights()
    after = answers(workers[:1], 1)
    assert_alike(after, answers(workers[2:], 1))
    # Untrained models say much the same, but not with the same probability.
    assert before[0].sampler_logprobs != pytest.approx(after[0].sampler_logprobs, abs=1e-3)
    with pytest.raises(StaleEngineError, match="holds 1, asked for version 0"):
        answers(workers[2:], 0)


class Engine:
    """Stands for vLLM's engine: it holds a version, and says which ones an answer came from."""

    def __init__(self) -> None:
        self.llm_engine = self
        self.held = "none"
        self.spans: list[WeightVersionSpan] | None = None
        self.asked = 0

    def set_weight_version(self, version: str) -> None:
        self.held = version

    def get_weight_version(self) -> str:
        return self.held

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self, version: str) -> None:
        self.held = version

    def generate(self, inputs: list[Any], *_: object, **__: object) -> list[Any]:
        self.asked += 1
        steps: Any = [{7: Logprob(-0.5)}, {1: Logprob(-0.25)}]
        completion = CompletionOutput(
            0, "", [7, 1], None, steps, finish_reason="stop", weight_versions=self.spans
        )
        return [SimpleNamespace(outputs=[completion]) for _ in inputs]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(sys.modules[RolloutWorker.__module__], "LLM", lambda **_: engine)
    return engine


def ask(worker: RolloutWorker, version: int) -> list[Rollout]:
    prompt = Prompt("p", (Message("user", "x"),), None, None, False, False, "test")
    return worker.generate([prompt], [[5, 6]], [0], SAMPLING, version)


def test_only_the_version_that_is_held_is_sampled_from(engine: Engine) -> None:
    worker = RolloutWorker("m", RolloutRole(), 64, eos_token_id=1, seed=0)
    # Until the first sync it holds the weights of who knows what.
    with pytest.raises(StaleEngineError, match="holds none, asked for version 0"):
        ask(worker, 0)
    worker.start_weight_update()
    worker.finish_weight_update("3")
    for other in (2, 4):
        with pytest.raises(StaleEngineError, match=f"holds 3, asked for version {other}"):
            ask(worker, other)
    worker.start_weight_update()
    with pytest.raises(StaleEngineError, match="an unfinished update, asked for version 3"):
        ask(worker, 3)
    assert engine.asked == 0
    worker.finish_weight_update("4")
    engine.spans = [WeightVersionSpan("4", 0, 2)]
    (rollout,) = ask(worker, 4)
    assert rollout.policy_version == 4
    assert rollout.sampler_logprobs.tolist() == [-0.5, -0.25]


@pytest.mark.parametrize(
    "spans",
    [
        None,
        [],
        [WeightVersionSpan("2", 0, 2)],
        [WeightVersionSpan("2", 0, 1), WeightVersionSpan("3", 1, 2)],
    ],
)
def test_an_answer_of_other_weights_than_the_engine_said_is_none(
    engine: Engine, spans: list[WeightVersionSpan] | None
) -> None:
    worker = RolloutWorker("m", RolloutRole(), 64, eos_token_id=1, seed=0, version=3)
    engine.spans = spans
    with pytest.raises(StaleEngineError, match=r"an answer came from versions .* asked for 3"):
        ask(worker, 3)
