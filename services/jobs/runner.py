"""Hands jobs over to Ray, some at a time, and follows what becomes of them."""

import asyncio
import logging
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rayward.services.jobs.copies import Copies
from rayward.services.jobs.files import read_part, size_of
from rayward.services.jobs.queue import JobQueue
from rayward.services.jobs.ray_jobs import RayAway, RayJob, RayJobs
from rayward.services.jobs.records import JobRecord
from rayward.services.jobs.runs import RunsRoot, state_of
from rayward.services.jobs.schemas import JobState

_LOOK_EVERY_S = 0.5
# Beyond the time that a job has to stop, for Ray to kill it and say so.
_PATIENCE_S = 3.0
# Ray, or the store of runs, may be away for so long before a job that cannot be begun has failed.
_BEGIN_PATIENCE_S = 600.0
_LAST_WORDS = 4096
_LONGEST_ERROR = 500

logger = logging.getLogger(__name__)


class JobRunner:
    """Runs what is queued.

    Args:
        queue: the jobs.
        root: where their runs belong.
        copies: where the runs are while they run, and their way to `root`.
        ray_jobs: Ray's job API.
        max_running: jobs that run at the same time.
        stop_grace_s: how long a job that is asked to stop may take, in seconds.
    """

    def __init__(
        self,
        queue: JobQueue,
        root: RunsRoot,
        copies: Copies,
        ray_jobs: RayJobs,
        max_running: int,
        stop_grace_s: float,
    ) -> None:
        self._queue = queue
        self._root = root
        self._copies = copies
        self._ray = ray_jobs
        self._max_running = max_running
        self._stop_grace_s = stop_grace_s
        self._awake = asyncio.Event()
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._asked_to_stop: dict[str, float] = {}  # by submission id, monotonic seconds
        self._cannot_begin: dict[str, float] = {}  # by submission id, since when, monotonic seconds
        self._ray_answers = True

    def wake(self) -> None:
        """There is something new to do."""
        self._awake.set()

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            LeaseLost: this process may not.
        """
        try:
            while True:
                await self._go_round()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._awake.wait(), _LOOK_EVERY_S)
                self._awake.clear()
        finally:
            for look in self._looks.values():
                look.cancel()

    async def _go_round(self) -> None:
        try:
            await self._start_next()
        except OSError as error:
            # A full disk: nobody is started, and whoever runs is still looked after.
            logger.warning("the queue: %s", error)
        for job in self._queue.active():
            # One job's long copy keeps nobody else waiting.
            if job.id not in self._looks:
                self._looks[job.id] = asyncio.create_task(self._look(job))
        for name, look in list(self._looks.items()):
            if look.done():
                del self._looks[name]
                look.result()

    async def _start_next(self) -> None:
        room = self._max_running - len(self._queue.active())
        for job in self._queue.next(max(room, 0)):
            # From here on the job may be Ray's, also if this process dies before it knows.
            await self._queue.change(job, state="running", started=datetime.now(UTC))

    async def _look(self, job: JobRecord) -> None:
        try:
            known = await asyncio.to_thread(self._ray.find, job.submission_id)
            if known is None and await asyncio.to_thread(self._is_at_work, job):
                # On another cluster, whose service kept the jobs before: it goes on to its end.
                if not job.accepted:
                    await self._queue.change(job, accepted=True)
                await asyncio.to_thread(self._copies.bring, job)
            elif job.state == "cancelling":
                await self._see_it_stop(job, known)
            elif not job.accepted:
                if known is None:
                    await self._begin(job)
                await self._queue.change(job, accepted=True)
            elif known is None or known.state in ("succeeded", "failed", "cancelled"):
                await self._end(job, known)
            else:
                await asyncio.to_thread(self._copies.bring, job)
        except RayAway as error:
            if self._ray_answers:
                logger.warning("Ray's job API: %s", error)
            self._ray_answers = False
        except OSError as error:
            # A disk or an object store that fails may come back; the job goes on.
            logger.warning("job %s: %s", job.id, error)
        else:
            self._ray_answers = True

    def _is_at_work(self, job: JobRecord) -> bool:
        return self._copies.nearest(job.id).run(job.id).is_at_work(job.started)

    async def _begin(self, job: JobRecord) -> None:
        """Hand a job over; one that cannot be for long has failed, and others get its place."""
        try:
            await asyncio.to_thread(self._hand_over, job)
        except (RayAway, OSError) as error:
            since = self._cannot_begin.setdefault(job.submission_id, time.monotonic())
            if time.monotonic() - since > _BEGIN_PATIENCE_S:
                words = f"it could not be begun for {_BEGIN_PATIENCE_S:g} s: {error}"
                changes = {"state": "failed", "error": _first_line(words)}
                await self._queue.change(job, ended=datetime.now(UTC), **changes)
                del self._cannot_begin[job.submission_id]
            raise
        self._cannot_begin.pop(job.submission_id, None)

    def _hand_over(self, job: JobRecord) -> None:
        """Have Ray run a job that it does not know."""
        self._copies.fetch(job)
        place = self._copies.place
        run = place.run(job.id)
        resume = run.can_resume()
        if not resume and run.exists():
            # The process was killed as it began, and nothing was made.
            shutil.rmtree(run.path)
        base = Path(place.path)
        self._ray.submit(
            job.submission_id, base / job.recipe, base / job.id, base / job.log, resume
        )

    async def _see_it_stop(self, job: JobRecord, known: RayJob | None) -> None:
        if known is None or known.state in ("succeeded", "failed", "cancelled"):
            await self._end(job, known)
            return
        assert job.cancel_requested is not None
        waited = (datetime.now(UTC) - job.cancel_requested).total_seconds()
        patience = self._stop_grace_s + _PATIENCE_S
        if known.state == "queued" and waited > patience:
            # Ray leaves a job pending that it could never place, but has noted that it must stop.
            await self._end(job, None)
            return
        asked = self._asked_to_stop.get(job.submission_id)
        if asked is None or time.monotonic() - asked > patience:
            await asyncio.to_thread(self._ray.stop, job.submission_id)
            self._asked_to_stop[job.submission_id] = time.monotonic()

    async def _end(self, job: JobRecord, known: RayJob | None) -> None:
        """Write down how a job came to its end.

        Args:
            job: the job.
            known: what Ray says of it; None where Ray has forgotten it.
        """
        await asyncio.to_thread(self._copies.finish, job)
        changes = await asyncio.to_thread(self._outcome, job, known)
        ended = datetime.now(UTC) if known is None or known.ended is None else known.ended
        await self._queue.change(job, ended=ended, **changes)
        self._asked_to_stop.pop(job.submission_id, None)

    def _outcome(self, job: JobRecord, known: RayJob | None) -> dict[str, Any]:
        """The state, and the error if there is one, of a job that has ended."""
        status = self._root.run(job.id).status()
        if status is not None and job.started is not None and status.updated < job.started:
            # An earlier attempt's; this one never came so far.
            status = None
        own = state_of(status)
        state: JobState
        if known is not None and known.state == "succeeded":
            state = "succeeded"
        elif job.state == "cancelling" and own != "succeeded":
            state = "cancelled"
        elif known is not None:
            # One that was stopped by a signal of its own failed only for Ray.
            stopped = status is not None and status.state == "stopped"
            failed = known.state == "failed"
            state = ("interrupted" if stopped else "failed") if failed else "cancelled"
        else:
            # The cluster went away, before the job began or later.
            state = own or "interrupted"
        if state != "failed":
            return {"state": state, "error": None}
        if status is not None and status.state == "failed" and status.error:
            return {"state": state, "error": status.error[:_LONGEST_ERROR]}
        message = None if known is None else known.message
        return {"state": state, "error": self._last_words(job) or _first_line(message)}

    def _last_words(self, job: JobRecord) -> str | None:
        path = f"{self._root.path}/{job.log}"
        size = size_of(self._root.filesystem, path) or 0
        end = read_part(self._root.filesystem, path, max(size - _LAST_WORDS, 0), _LAST_WORDS)
        lines = [line for line in end.decode(errors="replace").splitlines() if line.strip()]
        return " ".join(lines[-1].split())[:_LONGEST_ERROR] if lines else None


def _first_line(message: str | None) -> str:
    lines = (message or "").strip().splitlines() or ["the job failed before it said anything"]
    return lines[0][:_LONGEST_ERROR]
