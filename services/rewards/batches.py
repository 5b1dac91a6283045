"""Which waiting items share a forward pass of a reward model, and when it runs.

`serve.batch` forms a batch as soon as an item is there, before a slot is free, so that under load
and without waiting every batch has one item; it fails items that are larger than a batch, and one
of them that was given up in time ends its loop. Here a pass is chosen when it can start: the item
that waited longest, and those of like length.
"""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING

from ray.serve.exceptions import BackPressureError

from rayward.cluster.config.serving import ServedRewardModel
from rayward.cluster.errors import UnscoredError
from rayward.cluster.logits import probability
from rayward.cluster.types import Axis
from rayward.services.http.prometheus import observe_batch, observe_scores, set_queue

if TYPE_CHECKING:
    from rayward.actors.scoring.reward_passes import RewardPasses

_WINDOW = 256  # of the waiting items so many are looked through for one pass
# Out of memory, for one; ids that a model has no embedding for.
_FAILURES = (RuntimeError, IndexError)


@dataclass(eq=False)
class _Waiting:
    ids: Sequence[int]
    fixed: bool
    score: asyncio.Future[float]


class RewardBatches:
    """Scores token sequences of many requests together.

    Args:
        axis: what the model judges; names it in errors and metrics.
        passes: the model's forward passes.
        settings: the model's settings.
        wide: of one thread, the only one of this process that starts passes with all intra-op
            threads. With teams of OpenMP behind several, there are more threads than cores, and
            each operation waits to be woken: a lone item then took 15 ms more.
    """

    def __init__(
        self,
        axis: Axis,
        passes: "RewardPasses",
        settings: ServedRewardModel,
        wide: ThreadPoolExecutor,
    ) -> None:
        self._axis = axis
        self._passes = passes
        self._max_tokens = settings.max_tokens_per_batch
        self._most = settings.max_queued_items
        self._threads = settings.resources.threads
        self._wide = wide
        self._narrow = ThreadPoolExecutor(self._threads, "forward")
        self._waiting: dict[_Waiting, None] = {}  # in the order in which they came
        self._running: set[asyncio.Task[None]] = set()
        self.last_failed = False

    async def score(self, sequences: Sequence[Sequence[int]], fixed: bool) -> list[float]:
        """The logits of N token sequences, which the model has room for.

        Args:
            fixed: whether passes have fixed shapes: equal bits for equal sequences.

        Raises:
            BackPressureError: too many wait already.
            UnscoredError: a score could not be had.
        """
        if self._waiting and len(self._waiting) + len(sequences) > self._most:
            raise BackPressureError(len(self._waiting), self._most)
        loop = asyncio.get_running_loop()
        own = [_Waiting(ids, fixed, loop.create_future()) for ids in sequences]
        self._waiting.update(dict.fromkeys(own))
        self._start()
        try:
            return await asyncio.gather(*[one.score for one in own])
        finally:
            # A request that was given up leaves nothing behind.
            for one in own:
                self._waiting.pop(one, None)

    def _start(self) -> None:
        """Start passes while there are threads for them."""
        while self._waiting and len(self._running) < self._threads:
            batch = self._take()
            alone = not self._running and not self._waiting
            # Threads change the last bits on some machines: passes of fixed shape have a fixed
            # number of them, too.
            threads = self._threads if alone or batch[0].fixed else 1
            task = asyncio.create_task(self._run(batch, threads))
            self._running.add(task)
            task.add_done_callback(partial(self._ended, batch))
        set_queue(self._axis, len(self._waiting))

    def _ended(self, batch: list[_Waiting], task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        # After anything that nobody thought of: whoever waits must not wait for ever.
        for one in batch:
            if not one.score.done():
                error = None if task.cancelled() else task.exception()
                one.score.set_exception(self._failure(error))
        self._start()

    def _take(self) -> list[_Waiting]:
        """The item that waited longest, and others that may share its pass."""
        first = next(iter(self._waiting))
        alike: Iterator[_Waiting] = (one for one in self._waiting if one.fixed == first.fixed)
        window = list(islice(alike, _WINDOW))
        plan = self._passes.plan([len(one.ids) for one in window], first.fixed, self._max_tokens)
        batch = [window[index] for index in next(rows for rows in plan if 0 in rows)]
        for one in batch:
            del self._waiting[one]
        return batch

    async def _run(self, batch: list[_Waiting], threads: int) -> None:
        loop = asyncio.get_running_loop()
        ids, fixed = [one.ids for one in batch], batch[0].fixed
        pool = self._wide if threads == self._threads else self._narrow
        try:
            scores = await loop.run_in_executor(pool, self._passes.run, ids, fixed, threads)
        except _FAILURES as error:
            self.last_failed = True
            if len(batch) > 1:
                # The others have no part in what one of them does.
                for one in batch:
                    await self._run([one], threads)
            elif not batch[0].score.done():
                batch[0].score.set_exception(self._failure(error))
            return
        self.last_failed = False
        for one, score in zip(batch, scores.tolist(), strict=True):
            if one.score.done():
                continue  # nobody waits for it any more
            if isfinite(score):
                one.score.set_result(score)
            else:
                one.score.set_exception(UnscoredError(f"{self._axis}: a score is not finite"))
        observe_batch(self._axis, len(batch), sum(map(len, ids)))
        observe_scores(
            self._axis, [probability(score) for score in scores.tolist() if isfinite(score)]
        )

    def _failure(self, error: BaseException | None) -> UnscoredError:
        # The words of an error may hold what was scored; its kind does not.
        kind = type(error).__name__
        return UnscoredError(f"{self._axis}: the forward pass failed ({kind})")
