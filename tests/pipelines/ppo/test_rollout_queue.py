"""Rollouts ahead of the learner: in order, each once, and never too old."""

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError

from rayward.actors.roles import FrozenScoring
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.types import Message, Prompt, Rollout
from rayward.pipelines.ppo.prompt_stream import PromptStream
from rayward.pipelines.ppo.rollout_queue import RolloutQueue
from rayward.pipelines.run.encoding import EncodedPrompt
from tests.small_actors import Sampler, learn

PROMPTS = [
    EncodedPrompt(
        Prompt(f"p{i}", (Message("user", str(i)),), None, None, False, False, "test"), [i]
    )
    for i in range(40)
]
BATCH = 8


class Cast:
    """The part of `Roles` that the queue sees; the workers are real actors."""

    def __init__(self, workers: int, seconds: float) -> None:
        actor: Any = ray.remote(Sampler)
        self.rollout_workers = [
            actor.options(num_cpus=0).remote(seconds=seconds) for _ in range(workers)
        ]
        self.frozen: list[ray.ObjectRef] = []

    def start_frozen(self, shards: list[ray.ObjectRef]) -> FrozenScoring:
        self.frozen += shards
        return FrozenScoring([], [], [])

    def release(self) -> None:
        for worker in self.rollout_workers:
            ray.kill(worker)


def queue(cast: Cast, seed: int = 5, **settings: Any) -> RolloutQueue:  # noqa: ANN401
    own = {"batch_size": BATCH, "minibatch_size": 4, "phase_timeout_s": 30.0} | settings
    roles: Any = cast
    parsed = PPOSettings.model_validate(own)
    return RolloutQueue(roles, PromptStream(PROMPTS, seed), parsed, seed)


def step(rollouts: RolloutQueue, learning: float = 0.0) -> list[Rollout]:
    """One step of a loop that learns nothing."""
    shards, frozen = rollouts.collect()
    assert len(frozen) == len(shards)
    batch = [rollout for shard in ray.get(shards) for rollout in shard]
    task: Any = ray.remote(learn).options(num_cpus=0)
    rollouts.wait([task.remote(learning)])
    rollouts.version += 1
    return batch


def drawn(steps: int, prompts: int = BATCH) -> list[list[str]]:
    stream = PromptStream(PROMPTS, 5)
    return [[one.prompt.id for one in stream.take(prompts)] for _ in range(steps)]


def ids(batch: list[Rollout]) -> list[str]:
    return [rollout.prompt.id for rollout in batch]


@pytest.mark.parametrize("workers", [1, 3])
def test_synchronous_rollouts_are_of_the_version_that_learns(
    ray_session: None, workers: int
) -> None:
    cast = Cast(workers, seconds=0.01)
    rollouts = queue(cast)
    batches = [step(rollouts) for _ in range(6)]
    assert [ids(batch) for batch in batches] == drawn(6)
    for version, batch in enumerate(batches):
        assert {rollout.policy_version for rollout in batch} == {version}
    # One call per worker and step, and nothing ahead.
    assert len(cast.frozen) == 6 * workers
    seeds = [rollout.token_ids[-1] for batch in batches for rollout in batch]
    assert len(set(seeds)) == 6 * BATCH
    cast.release()


@pytest.mark.parametrize("bound", [1, 2])
def test_no_rollout_is_older_than_the_bound_and_none_is_lost(ray_session: None, bound: int) -> None:
    cast = Cast(workers=2, seconds=0.005)
    rollouts = queue(cast, max_staleness=bound)
    # A learner that is slow enough for the workers to run as far ahead as they may.
    batches = [step(rollouts, learning=0.3) for _ in range(6)]
    assert [ids(batch) for batch in batches] == drawn(6)
    ages = [v - one.policy_version for v, batch in enumerate(batches) for one in batch]
    assert max(ages) == bound
    assert min(ages) >= 0
    rollouts.drain()
    # The admission rule: never more than (bound + updates + 1) batches were started.
    started = sum(len(shard) for shard in ray.get(cast.frozen))
    assert started == (bound + 6) * BATCH
    cast.release()


def test_slow_workers_are_waited_for(ray_session: None) -> None:
    cast = Cast(workers=2, seconds=0.05)
    rollouts = queue(cast, max_staleness=3)
    batches = [step(rollouts) for _ in range(4)]
    assert [ids(batch) for batch in batches] == drawn(4)
    ages = [v - one.policy_version for v, batch in enumerate(batches) for one in batch]
    assert max(ages) <= 3
    cast.release()


def test_answers_to_one_prompt_stand_together(ray_session: None) -> None:
    cast = Cast(workers=3, seconds=0.0)
    rollouts = queue(cast, samples_per_prompt=4, max_staleness=1)
    batch = step(rollouts)
    (expected,) = drawn(1, prompts=BATCH // 4)
    assert ids(batch) == [name for name in expected for _ in range(4)]
    assert [rollout.sample_index for rollout in batch] == [0, 1, 2, 3] * 2
    assert len({rollout.token_ids[-1] for rollout in batch}) == BATCH
    cast.release()


def test_what_was_sampled_ahead_survives_a_restart(ray_session: None, tmp_path: Path) -> None:
    cast = Cast(workers=2, seconds=0.005)
    rollouts = queue(cast, max_staleness=1)
    for _ in range(3):
        step(rollouts, learning=0.2)
    cursor = rollouts.save(tmp_path)
    again = queue(cast, max_staleness=1)
    again.restore(tmp_path, cursor, version=3)
    before = len(cast.frozen)
    restored = step(again)
    # Batch 3 was sampled under version 2, before the restart, and is not sampled again.
    assert ids(restored) == drawn(4)[3]
    assert {rollout.policy_version for rollout in restored} == {2}
    kept = step(rollouts)
    assert [one.token_ids.tolist() for one in restored] == [one.token_ids.tolist() for one in kept]
    assert ids(step(again)) == drawn(5)[4]
    assert len(cast.frozen) > before
    cast.release()


def test_a_worker_that_hangs_is_an_error_in_time(ray_session: None) -> None:
    cast = Cast(workers=1, seconds=5.0)
    with pytest.raises(GetTimeoutError, match=r"within 0\.2 s"):
        queue(cast, phase_timeout_s=0.2).collect()
    cast.release()
