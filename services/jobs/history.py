"""Every job there is: those that were submitted here, and runs that somebody else started."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rayward.services.jobs.copies import Copies
from rayward.services.jobs.ray_jobs import RayJob
from rayward.services.jobs.records import JobRecord
from rayward.services.jobs.runs import RunFiles, RunsRoot, state_of
from rayward.services.jobs.schemas import FINAL, Job, JobDetail, JobState, StateEvent

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Known:
    """A job, where its run is, and who else knows of it."""

    job: Job
    files: RunFiles
    record: JobRecord | None
    ray_job: RayJob | None

    def state(self) -> StateEvent:
        """How it stands, as its events say it."""
        return StateEvent(
            state=self.job.state,
            stage=self.job.stage,
            stages_done=self.files.stages_done(),
            error=self.job.error,
        )

    def detail(self) -> JobDetail:
        """All there is to say."""
        return JobDetail(
            **self.job.model_dump(),
            stages_done=self.files.stages_done(),
            samples=self.files.samples(),
            config=self.files.config(),
        )


class History:
    """Jobs as they are answered. Every method blocks: it reads files.

    Args:
        root: where the runs are.
        copies: where they are while they run.
    """

    def __init__(self, root: RunsRoot, copies: Copies) -> None:
        self._root = root
        self._copies = copies
        self._run_by_ray_job: dict[str, str] = {}

    def all(self, records: Iterable[JobRecord], ray_jobs: Iterable[RayJob]) -> list[Job]:
        """All jobs, newest first.

        Args:
            records: what was submitted here.
            ray_jobs: what runs or ran on this cluster.
        """
        own = {record.id: self.of_record(record).job for record in records}
        found = list(own.values())
        started_by_hand = [name for name in self._root.names() if name not in own]
        by_run = self._by_run(ray_jobs)
        found += [self._of_run(name, by_run.get(name)).job for name in started_by_hand]
        shown = {job.id for job in found}
        found += [
            self._of_ray(job).job for job in ray_jobs if (self._run_of(job) or "") not in shown
        ]
        return sorted(found, key=lambda job: (job.submitted or _LONG_AGO, job.id), reverse=True)

    def other(self, name: str, ray_jobs: Iterable[RayJob]) -> Known | None:
        """A job that was not submitted here, by the name of its run or by Ray's; None: unknown."""
        # So that the origin of all that is there is known.
        self._root.names()
        by_run = self._by_run(ray_jobs)
        by_id = {job.submission_id: job for job in ray_jobs}
        if self._root.run(name).exists():
            return self._of_run(name, by_run.get(name))
        if name not in by_id:
            return None
        run = self._run_of(by_id[name])
        if run is not None and self._root.run(run).exists():
            return self._of_run(run, by_run[run])
        return self._of_ray(by_id[name])

    def of_record(self, record: JobRecord) -> Known:
        """A job that was submitted here."""
        files = self._copies.nearest(record.id).run(record.id)
        status = files.status() if record.state in ("running", "cancelling") else None
        # Until Ray has taken it, it waits.
        is_waiting = record.state == "running" and not record.accepted
        job = Job(
            id=record.id,
            origin="api",
            kind=record.kind,
            name=record.name,
            state="queued" if is_waiting else record.state,
            priority=record.priority,
            submitted=record.submitted,
            started=record.started,
            ended=record.ended,
            attempt=record.attempt,
            stage=None if status is None else status.stage,
            error=record.error,
            run=self._root.place_of(record.id),
        )
        return Known(job, files, record, None)

    def _of_run(self, name: str, ray_job: RayJob | None) -> Known:
        files = self._root.run(name)
        status = files.status()
        state: JobState = state_of(status) or "interrupted"
        if status is not None and status.state == "running":
            if ray_job is not None:
                state = ray_job.state
            elif not files.owner_is_gone():
                state = "running"
        recipe, created = self._root.origin(name)
        job = Job(
            id=name,
            origin="directory" if ray_job is None else "ray",
            kind=None,
            name=recipe,
            state=state,
            priority=None,
            submitted=created,
            started=created if ray_job is None else ray_job.started,
            ended=status.updated if status is not None and state in FINAL else None,
            attempt=None,
            stage=None if status is None or state in FINAL else status.stage,
            error=status.error if status is not None and state == "failed" else None,
            run=self._root.place_of(name),
        )
        return Known(job, files, None, ray_job)

    def _of_ray(self, ray_job: RayJob) -> Known:
        job = Job(
            id=ray_job.submission_id,
            origin="ray",
            kind=None,
            name=None,
            state=ray_job.state,
            priority=None,
            submitted=ray_job.started,
            started=ray_job.started,
            ended=ray_job.ended,
            attempt=None,
            stage=None,
            error=None,
            run=None,
        )
        # A name that no run has: there is nothing to read.
        return Known(job, self._root.run(f".{ray_job.submission_id}"), None, ray_job)

    def _by_run(self, ray_jobs: Iterable[RayJob]) -> dict[str, RayJob]:
        """The last Ray job of each run: a run that was cut short goes on in another."""
        in_order = sorted(ray_jobs, key=lambda job: job.started or _LONG_AGO)
        return {name: job for job in in_order if (name := self._run_of(job)) is not None}

    def _run_of(self, ray_job: RayJob) -> str | None:
        """The name of a Ray job's run, if it is under the runs root."""
        known = self._run_by_ray_job.get(ray_job.submission_id)
        if known is not None:
            return known
        out = ray_job.out
        if out is not None and out.is_absolute():
            is_here = out.resolve().parent == Path(self._copies.place.path).resolve()
            return out.resolve().name if is_here else None
        # What a relative path is relative to only the run itself can say. One that was started
        # without a path was new, and its manifest as it was then is at hand.
        if out is None:
            found = self._root.begun_in(ray_job.submission_id)
        else:
            is_its = ray_job.submission_id in self._root.run(out.name).ray_jobs()
            found = out.name if is_its else None
        if found is not None:
            self._run_by_ray_job[ray_job.submission_id] = found
        return found
