"""Jobs: the replica that keeps the queue, and answers what the routes ask.

submission -> record on disk -> queue -> Ray -> run directory -> answers, events
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from rayward.cluster.config.serving import JobServiceSettings
from rayward.services.http.errors import ApiError
from rayward.services.jobs.copies import Copies
from rayward.services.jobs.events import Cursor, EventPage, events_since
from rayward.services.jobs.files import LONGEST_CHARACTER, decode_part
from rayward.services.jobs.history import History, Known
from rayward.services.jobs.lease import Lease, LeaseLost
from rayward.services.jobs.queue import JobQueue
from rayward.services.jobs.ray_jobs import RayJobList, RayJobs
from rayward.services.jobs.recipes import check_config
from rayward.services.jobs.records import Records, digest
from rayward.services.jobs.refusals import refusing
from rayward.services.jobs.runner import JobRunner
from rayward.services.jobs.runs import RunsRoot
from rayward.services.jobs.schemas import (
    FINAL,
    Job,
    JobDetail,
    JobList,
    JobState,
    LogPage,
    MetricsPage,
    SamplesPage,
    SubmitRequest,
    Submitted,
)

# They wait for disks, stores and Ray; Python's default follows the number of cores.
_THREADS = 32
# How old records of another service's may be.
_RECORDS_KEPT_S = 1.0
# A service that has just started will keep the jobs in a moment.
_LEASE_PATIENCE_S = 5.0

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class JobService:
    """Keeps the queue. There is one replica; what it has answered is on disk.

    Where another service keeps the jobs of the same runs root, it answers from what that one
    writes, changes nothing, and takes over when the other one is gone.

    Its methods return a `Refusal` where they would raise an `ApiError`.

    Args:
        settings: where the runs are, and how many run at a time.

    Raises:
        InputError: the runs root is no folder or URI.
    """

    def __init__(self, settings: JobServiceSettings) -> None:
        self._root = RunsRoot(settings.runs_root)
        copies = Copies(self._root)
        self._copies = copies
        self._settings = settings
        self._lease = Lease(self._root)
        self._queue = JobQueue(Records(self._root), settings.max_queued, self._lease)
        self._loaded = time.monotonic()
        self._ray = RayJobs(settings.stop_grace_s)
        self._ray_jobs = RayJobList(self._ray)
        self._history = History(self._root, copies)
        self._runner = self._new_runner()
        # Serve makes the replica inside its event loop.
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_THREADS))
        self._keeps_jobs = asyncio.Event()
        self._work = loop.create_task(self._keep_jobs())
        self._changes: set[asyncio.Task[Any]] = set()

    def __del__(self) -> None:
        """Serve calls it when it stops the replica, so that the next service need not wait."""
        if hasattr(self, "_work"):
            self._lease.release()
            self._work.cancel()

    async def check_health(self) -> None:
        """Serve asks now and then; a replica whose queue stands still is replaced."""
        if self._work.done():
            self._work.result()

    @refusing
    async def submit(self, request: SubmitRequest, key: str | None) -> Submitted:
        """Get a job in line.

        Args:
            request: what to run.
            key: the request's idempotency key, with whose it is; the same one twice is one job.
        """
        await self._require_keeper()
        body = digest(request.model_dump())
        known = self._queue.replay(key, body)
        if known is not None:
            return Submitted(job=(await self._known(known.id)).job, is_replay=True)
        recipe = await asyncio.to_thread(check_config, request.kind, request.config)
        record, replayed = await self._whole(
            self._queue.add(request.kind, recipe, request.priority, key, body)
        )
        self._runner.wake()
        return Submitted(job=(await self._known(record.id)).job, is_replay=replayed)

    @refusing
    async def jobs(self, limit: int, after: str | None, state: JobState | None) -> JobList:
        """A page of all jobs, newest first.

        Args:
            limit: of jobs on the page.
            after: the last job of the page before.
            state: only jobs in this state.
        """
        await self._look_again()
        ray_jobs = await self._ray_jobs.get()
        found = await asyncio.to_thread(self._history.all, list(self._queue.all()), ray_jobs)
        start = 0
        if after is not None:
            places = [place for place, job in enumerate(found, start=1) if job.id == after]
            if not places:
                raise ApiError(422, f"after: no job {after!r}", "after", "invalid_value")
            start = places[0]
        page = [job for job in found[start:] if state is None or job.state == state]
        return JobList(jobs=page[:limit], next=page[limit - 1].id if len(page) > limit else None)

    @refusing
    async def job(self, name: str) -> JobDetail:
        """A job and what there is of its run."""
        return await self._read(name, Known.detail)

    @refusing
    async def log(self, name: str, offset: int, limit: int) -> LogPage:
        """A part of what a job said, in bytes."""
        limit = max(limit, LONGEST_CHARACTER)

        def page(known: Known) -> LogPage:
            if known.record is not None:
                place = self._copies.nearest(name)
                data, is_last = place.part(known.record.log, offset, limit)
            elif known.ray_job is not None:
                rest = self._ray.log(known.ray_job.submission_id).encode()[offset:]
                data, is_last = rest[:limit], len(rest) <= limit
            else:
                message = "of a run that was started by hand no log is kept"
                raise ApiError(404, message, code="no_log")
            is_end = is_last and known.job.state in FINAL
            text, used = decode_part(data, is_end)
            return LogPage(text=text, next_offset=offset + used, complete=is_end)

        return await self._read(name, page)

    @refusing
    async def metrics(self, name: str, stage: str | None, offset: int, limit: int) -> MetricsPage:
        """Metrics of a job's run from `offset` bytes on."""
        rows, end = await self._read(
            name, lambda known: known.files.metric_rows(stage, offset, limit)
        )
        return MetricsPage(rows=rows, next_offset=end)

    @refusing
    async def samples(self, name: str, stage: str, offset: int, limit: int) -> SamplesPage:
        """Answers on held-out prompts after a stage of a job's run."""
        rows, total = await self._read(
            name, lambda known: known.files.sample_rows(stage, offset, limit)
        )
        return SamplesPage(rows=rows, total=total)

    @refusing
    async def events(self, name: str, cursor: Cursor) -> EventPage:
        """What has happened to a job since a cursor."""
        return await self._read(
            name, lambda known: events_since(known.files, known.state(), cursor)
        )

    @refusing
    async def cancel(self, name: str) -> Job:
        """Cancel a job that waits or runs."""
        await self._require_keeper()
        known = await self._known(name)
        if known.record is not None:
            await self._whole(self._queue.cancel(known.record))
            self._runner.wake()
        elif known.ray_job is not None and known.job.state not in FINAL:
            await asyncio.to_thread(self._ray.stop, known.ray_job.submission_id)
        else:
            raise _not_ours(known)
        return (await self._known(name)).job

    @refusing
    async def resume(self, name: str) -> Job:
        """Go on with a job that failed, was cancelled or interrupted."""
        await self._require_keeper()
        known = await self._known(name)
        if known.record is None:
            raise _not_ours(known)
        await self._whole(self._queue.resume(known.record))
        self._runner.wake()
        return (await self._known(name)).job

    async def _whole(self, change: Coroutine[Any, Any, _T]) -> _T:
        """Make a change, also if whoever asked for it hangs up, which cancels the request."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        try:
            return await asyncio.shield(task)
        except LeaseLost as error:
            raise self._lease.refusal() from error

    def _new_runner(self) -> JobRunner:
        settings = self._settings
        return JobRunner(
            self._queue,
            self._root,
            self._copies,
            self._ray,
            settings.max_running,
            settings.stop_grace_s,
        )

    async def _keep_jobs(self) -> None:
        """Run jobs for as long as this is the service that keeps them; wait until it is."""
        while True:
            await self._lease.take()
            work = {
                asyncio.create_task(self._run_jobs()),
                asyncio.create_task(self._lease.keep()),
            }
            try:
                done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
            except LeaseLost as error:
                logger.warning("the lease on jobs is lost: %s", error)
            finally:
                self._keeps_jobs.clear()
                for one in work:
                    one.cancel()

    async def _run_jobs(self) -> None:
        # Others may have written since, and what a runner remembers may no longer be so.
        await self._queue.reload()
        self._runner = self._new_runner()
        self._keeps_jobs.set()
        await self._runner.run()

    async def _require_keeper(self) -> None:
        if self._lease.other is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._keeps_jobs.wait(), _LEASE_PATIENCE_S)
        if not (self._keeps_jobs.is_set() and self._lease.is_held):
            raise self._lease.refusal()

    async def _look_again(self) -> None:
        """Find out what the service that keeps the jobs has written, if it is not this one."""
        now = time.monotonic()
        if not self._keeps_jobs.is_set() and now - self._loaded >= _RECORDS_KEPT_S:
            self._loaded = now
            await self._queue.reload()

    async def _known(self, name: str) -> Known:
        await self._look_again()
        record = self._queue.find(name)
        if record is not None:
            return await asyncio.to_thread(self._history.of_record, record)
        found = await asyncio.to_thread(self._history.other, name, await self._ray_jobs.get())
        if found is None:
            raise ApiError(404, f"no job {name!r}", "id", "no_such_job")
        return found

    async def _read(self, name: str, question: Callable[[Known], _T]) -> _T:
        """Ask a job's files, again if they have moved to the store, or back, meanwhile.

        Both at once, within one question, is not seen.
        """
        while True:
            known = await self._known(name)
            try:
                answer = await asyncio.to_thread(question, known)
            except (OSError, ApiError):
                if not self._has_moved(known):
                    raise
            else:
                if not self._has_moved(known):
                    return answer

    def _has_moved(self, known: Known) -> bool:
        return known.record is not None and not self._copies.are_nearest(known.files)


def _not_ours(known: Known) -> ApiError:
    return ApiError(
        409, f"the job is {known.job.state} and was not submitted here", code="not_ours"
    )
