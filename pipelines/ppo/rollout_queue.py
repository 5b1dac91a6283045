"""Rollouts ahead of the learner, and never more than `max_staleness` versions behind it.

    prompts -> units -> idle rollout worker -> reference and reward models -> batch in order

Admission rule (Fu et al. 2025, "AReaL", section 5.1): with S = max_staleness, B = batch_size and v
updates done, a unit is started only while all rollouts ever started, with its own, are at most
(S + v + 1) * B. Batches are learned from in the order in which their prompts were drawn, batch k
after k updates. A rollout of batch k is so never started before version k - S.

With S = 0 a batch is one unit per worker, dealt by index, and everything repeats bit for bit. With
S above 0 units are smaller, each goes to whichever worker is free, and a weight sync waits for no
more than the units that run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError

from rayward.actors.roles import FrozenScoring, Roles
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.records.rollouts import read_rollouts, write_rollouts
from rayward.pipelines.ppo.prompt_stream import PromptStream
from rayward.pipelines.run.encoding import EncodedPrompt

# Streams of random draws, apart from one another.
TRAINING_DRAWS, VALIDATION_DRAWS = 0, 1

_ROLLOUTS = "rollouts.parquet"
# Small units let a sync come soon and keep workers busy; large ones fill an engine's batch.
_UNITS_PER_WORKER = 4


@dataclass
class _Unit:
    """Some answers of one batch, sampled in one call."""

    batch: int
    index: int  # within the batch
    prompts: list[EncodedPrompt]
    seeds: list[int]
    sample_indices: list[int]
    shard: ObjectRef | None = None  # to a list of rollouts, once it was started
    frozen: FrozenScoring | None = None
    finished: bool = False


class RolloutQueue:
    """Keeps the rollout workers busy with what the learner will need.

    Args:
        roles: all roles, started; the workers hold version 0.
        prompts: training prompts.
        settings: the PPO stage's settings.
        seed: of the run.
    """

    def __init__(
        self, roles: Roles, prompts: PromptStream, settings: PPOSettings, seed: int
    ) -> None:
        self._roles = roles
        self._prompts = prompts
        self._settings = settings
        self._seed = seed
        self.version = 0
        self._units: list[_Unit] = []  # not yet learned from, in order
        self._running: dict[ObjectRef, tuple[int, _Unit]] = {}  # with the worker's index
        self._cursors: dict[int, dict[str, Any]] = {}  # before each batch in `_units`
        self._started = 0  # rollouts, ever
        self._planned = 0  # batches, ever

    def collect(self) -> tuple[list[ObjectRef], list[FrozenScoring]]:
        """The batch that the current version learns from, once it is sampled.

        Returns:
            References to lists of rollouts, and the scoring that was started of each.
        """
        deadline = time.monotonic() + self._settings.phase_timeout_s
        self._fill()
        batch = [unit for unit in self._units if unit.batch == self.version]
        while any(not unit.finished for unit in batch):
            self._await_one([], deadline)
            self._fill()
        self._units = [unit for unit in self._units if unit.batch != self.version]
        del self._cursors[self.version]
        shards = [unit.shard for unit in batch if unit.shard is not None]
        return shards, [unit.frozen for unit in batch if unit.frozen is not None]

    def wait(self, calls: Sequence[ObjectRef]) -> None:
        """Wait until all calls have an answer, and keep the workers busy meanwhile.

        Raises:
            ray.exceptions.GetTimeoutError: not within `phase_timeout_s`.
        """
        deadline = time.monotonic() + self._settings.phase_timeout_s
        waiting = list(calls)
        while waiting:
            self._fill()
            done = self._await_one(waiting, deadline)
            waiting = [call for call in waiting if call not in done]

    def drain(self) -> None:
        """Let what runs come to its end, and start nothing more."""
        deadline = time.monotonic() + self._settings.phase_timeout_s
        while self._running:
            self._await_one([], deadline)

    def save(self, directory: Path) -> dict[str, Any]:
        """Keep what was sampled and not yet learned from.

        Returns:
            The prompts' cursor before the oldest such batch, for `restore`.
        """
        self.drain()
        rows = [
            (unit.batch, unit.index, rollout)
            for unit in self._units
            if unit.shard is not None
            for rollout in ray.get(unit.shard)
        ]
        if rows:
            write_rollouts(directory / _ROLLOUTS, rows)
        return self._cursors[min(self._cursors)] if self._cursors else self._prompts.state()

    def restore(self, directory: Path, cursor: dict[str, Any], version: int) -> None:
        """Go on where `save` left off, after `version` updates."""
        self._prompts.restore(cursor)
        self.version = self._planned = version
        self._started = version * self._settings.batch_size
        path = directory / _ROLLOUTS
        if not path.is_file():
            return
        kept = read_rollouts(path, self._prompts.by_id())
        while self._planned <= max(batch for batch, _ in kept):
            self._plan()
        for unit in self._units:
            if (unit.batch, unit.index) in kept:
                self._start(unit, ray.put(kept[unit.batch, unit.index]))
                unit.finished = True

    def seeds(self, number: int, draws: int, count: int) -> list[int]:
        """One request seed per answer, from the run's seed, a batch or step, and the stream."""
        sequence = np.random.SeedSequence([self._seed, number, draws])
        return [int(word) for word in sequence.generate_state(count, np.uint32)]

    def _fill(self) -> None:
        """Give idle workers what the admission rule lets through."""
        settings = self._settings
        admitted = (settings.max_staleness + self.version + 1) * settings.batch_size
        workers = self._roles.rollout_workers
        busy = {worker for worker, _ in self._running.values()}
        for worker in (index for index in range(len(workers)) if index not in busy):
            if all(unit.shard is not None for unit in self._units):
                if self._planned * settings.batch_size >= admitted:
                    return
                self._plan()
            unit = next(unit for unit in self._units if unit.shard is None)
            if self._started + len(unit.prompts) > admitted:
                return
            shard: ObjectRef = workers[worker].generate.remote(
                [one.prompt for one in unit.prompts],
                [one.token_ids for one in unit.prompts],
                unit.seeds,
                settings.sampling,
                self.version,
                unit.sample_indices,
            )
            self._start(unit, shard)
            self._running[shard] = (worker, unit)

    def _start(self, unit: _Unit, shard: ObjectRef) -> None:
        unit.shard = shard
        # Their weights never change, so they may score long before the learner gets there.
        unit.frozen = self._roles.start_frozen([shard])
        self._started += len(unit.prompts)

    def _plan(self) -> None:
        """Draw the next batch's prompts and cut it into units."""
        settings, number = self._settings, self._planned
        self._cursors[number] = self._prompts.state()
        drawn = self._prompts.take(settings.batch_size // settings.group_size)
        prompts = [one for one in drawn for _ in range(settings.group_size)]
        seeds = self.seeds(number, TRAINING_DRAWS, len(prompts))
        places = [index % settings.group_size for index in range(len(prompts))]
        units = len(self._roles.rollout_workers)
        units *= _UNITS_PER_WORKER if settings.max_staleness else 1
        bounds = np.unique(np.linspace(0, len(prompts), units + 1).astype(int))
        for index, (start, end) in enumerate(pairwise(bounds)):
            self._units.append(
                _Unit(number, index, prompts[start:end], seeds[start:end], places[start:end])
            )
        self._planned += 1

    def _await_one(self, calls: Sequence[ObjectRef], deadline: float) -> set[ObjectRef]:
        """Wait for one answer, to `calls` or from a worker; returns what has one."""
        both = [*calls, *self._running]
        left = max(0.0, deadline - time.monotonic())
        done, _ = ray.wait(both, num_returns=1, timeout=left, fetch_local=False)
        if not done:
            raise GetTimeoutError(f"no answer within {self._settings.phase_timeout_s} s")
        for call in done:
            if call in self._running:
                self._running.pop(call)[1].finished = True
        return set(done)
