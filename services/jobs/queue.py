"""The queue: which jobs there are, and what may become of them.

queued -> running -> { succeeded | failed | interrupted | cancelling -> cancelled }
   ^                        failed, interrupted, cancelled: may be resumed
   '------------------------'
"""

import asyncio
import heapq
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from rayward.cluster.config.recipe import Recipe
from rayward.services.http.errors import ApiError, unavailable
from rayward.services.jobs.lease import Lease
from rayward.services.jobs.records import JobRecord, Records, digest, new_id
from rayward.services.jobs.schemas import FINAL, RESUMABLE, JobKind

_RETRY_AFTER_S = 30


class JobQueue:
    """Jobs that were submitted. What a method has returned is on disk.

    A method that changes a job raises `LeaseLost` where this process may not.

    Args:
        records: where they are kept.
        max_queued: how many may wait.
        lease: the right to change them.
    """

    def __init__(self, records: Records, max_queued: int, lease: Lease) -> None:
        self._records = records
        self._max_queued = max_queued
        self._lease = lease
        self._jobs: dict[str, JobRecord] = {}
        self._by_key: dict[str, str] = {}
        self._know(records.load())
        # Whoever changes a job holds it until the change is on disk.
        self._changing = asyncio.Lock()

    async def reload(self) -> None:
        """Find out what others have written."""
        async with self._changing:
            self._know(await asyncio.to_thread(self._records.load))

    def all(self) -> Iterable[JobRecord]:
        """All jobs, in no order."""
        return self._jobs.values()

    def find(self, job: str) -> JobRecord | None:
        """A job by its id."""
        return self._jobs.get(job)

    def active(self) -> list[JobRecord]:
        """The jobs that Ray has, or is about to have."""
        return [job for job in self._jobs.values() if job.state in ("running", "cancelling")]

    def next(self, count: int) -> list[JobRecord]:
        """The jobs to run next: of the highest priority, then the oldest."""
        queued = (job for job in self._jobs.values() if job.state == "queued")
        return heapq.nsmallest(count, queued, key=lambda job: (-job.priority, job.queued, job.id))

    def replay(self, key: str | None, request: str) -> JobRecord | None:
        """The job that was submitted before with an idempotency key; None for a new one.

        Raises:
            ApiError: 409, the key came with another request.
        """
        if key is None or (known := self._by_key.get(digest(key))) is None:
            return None
        if self._jobs[known].request != request:
            raise ApiError(
                409,
                "this Idempotency-Key was used for another request",
                "Idempotency-Key",
                "idempotency_key_reused",
            )
        return self._jobs[known]

    async def add(
        self, kind: JobKind, recipe: Recipe, priority: int, key: str | None, request: str
    ) -> tuple[JobRecord, bool]:
        """Get a job in line.

        Args:
            kind: what was submitted.
            recipe: what to run.
            priority: the higher, the sooner.
            key: the request's idempotency key.
            request: digest of the request.

        Returns:
            The job, and whether it was there already.

        Raises:
            ApiError: 409, the key came with another request; 503, the queue is full.
        """
        async with self._changing:
            known = self.replay(key, request)
            if known is not None:
                return known, True
            self._require_room()
            now = datetime.now(UTC)
            job = JobRecord(
                id=new_id(recipe.name, now),
                kind=kind,
                name=recipe.name,
                priority=priority,
                state="queued",
                submitted=now,
                queued=self._after_all(now),
                idempotency_key=None if key is None else digest(key),
                request=request,
            )
            self._lease.require()
            await asyncio.to_thread(self._records.add, job, recipe)
            self._jobs[job.id] = job
            if job.idempotency_key is not None:
                self._by_key[job.idempotency_key] = job.id
            return job, False

    async def cancel(self, job: JobRecord) -> JobRecord:
        """Cancel a job: at once where it waits; what Ray has is to be stopped.

        Raises:
            ApiError: 409, it has come to its end.
        """
        async with self._changing:
            job = self._jobs[job.id]
            now = datetime.now(UTC)
            if job.state in FINAL:
                raise _conflict(f"the job is {job.state}", "job_is_final")
            if job.state == "queued":
                return await self._put(job, state="cancelled", cancel_requested=now, ended=now)
            if job.state == "running":
                return await self._put(job, state="cancelling", cancel_requested=now)
            return job

    async def resume(self, job: JobRecord) -> JobRecord:
        """Get a job in line again, to go on where it was left.

        Raises:
            ApiError: 409, it waits, runs, or has succeeded; 503, the queue is full.
        """
        async with self._changing:
            job = self._jobs[job.id]
            if job.state not in RESUMABLE or job.unreadable:
                raise _conflict(f"the job is {job.state}", "job_cannot_be_resumed")
            self._require_room()
            return await self._put(
                job,
                state="queued",
                queued=self._after_all(datetime.now(UTC)),
                # An attempt that Ray never had leaves its number to this one.
                attempt=job.attempt + (job.started is not None),
                started=None,
                ended=None,
                error=None,
                accepted=False,
                cancel_requested=None,
            )

    async def change(self, job: JobRecord, **changes: object) -> bool:
        """Change a job, unless somebody else has since it was looked at.

        Returns:
            Whether it was changed.
        """
        async with self._changing:
            if self._jobs[job.id] is not job:
                return False
            await self._put(job, **changes)
            return True

    async def _put(self, job: JobRecord, **changes: object) -> JobRecord:
        self._lease.require()
        changed = job.model_copy(update=changes)
        await asyncio.to_thread(self._records.write, changed)
        self._jobs[job.id] = changed
        return changed

    def _know(self, jobs: dict[str, JobRecord]) -> None:
        self._jobs = jobs
        self._by_key = {job.idempotency_key: job.id for job in jobs.values() if job.idempotency_key}

    def _require_room(self) -> None:
        queued = sum(job.state == "queued" for job in self._jobs.values())
        if queued >= self._max_queued:
            raise unavailable(f"{queued} jobs wait already", _RETRY_AFTER_S, "queue_full")

    def _after_all(self, now: datetime) -> datetime:
        """A time for the end of the line: later than everybody's, if the clock was set back."""
        last = max((job.queued for job in self._jobs.values()), default=now)
        return max(now, last + timedelta(microseconds=1))


def _conflict(message: str, code: str) -> ApiError:
    return ApiError(409, message, code=code)
