"""Ray's job submission API, with its defects hidden.

Ray takes any shell command from whoever has its token, answers a repeated id with a traceback,
shows the environment of a job in clear, and kills three seconds after it was asked to stop. Here a
command is always `rayward run`, an id that Ray knows is found first, nothing secret is in an
environment that Ray is told, and the time to stop is set.
"""

import asyncio
import itertools
import logging
import math
import shlex
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from rayward.services.jobs.schemas import JobState

RAYWARD = str(Path(sys.executable).with_name("rayward"))
_TIMEOUT_S = 30.0
_LIST_KEPT_S = 1.0
_LIST_TIMEOUT_S = 5.0
_COMMANDS = ("run", "demo", "evaluate")
_STATES: dict[JobStatus, JobState] = {
    JobStatus.PENDING: "queued",
    JobStatus.RUNNING: "running",
    JobStatus.STOPPED: "cancelled",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
}

logger = logging.getLogger(__name__)


class _Client(JobSubmissionClient):
    """Ray's client waits for ever where nothing answers."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        return super()._do_request(*arguments, timeout=_TIMEOUT_S, **options)


class RayAway(Exception):
    """Ray's job API does not answer, or not as it should; it may later."""


@dataclass(frozen=True)
class RayJob:
    """A job as Ray knows it."""

    submission_id: str
    state: JobState
    """`queued` means that Ray has not started it."""
    entrypoint: str
    message: str | None
    started: datetime | None
    ended: datetime | None

    @property
    def out(self) -> Path | None:
        """The run directory that the command names, relative to wherever Ray has started it."""
        words = _words(self.entrypoint)
        for index, word in enumerate(words):
            name, _, value = word.partition("=")
            if name == "--out":
                return Path(value or "".join(words[index + 1 : index + 2]))
        return None

    @property
    def is_rayward(self) -> bool:
        """Whether the command is one that makes a run."""
        words = _words(self.entrypoint)
        pairs = itertools.pairwise(words)
        return any(Path(one).name == "rayward" and two in _COMMANDS for one, two in pairs)


class RayJobs:
    """Jobs on the Ray cluster that this process is part of. Every method blocks.

    Args:
        stop_grace_s: how long a job that is asked to stop may take, in seconds.
    """

    def __init__(self, stop_grace_s: float) -> None:
        self._stop_grace_s = math.ceil(stop_grace_s)
        self._client: _Client | None = None

    def submit(self, submission_id: str, recipe: Path, out: Path, log: Path, resume: bool) -> None:
        """Have Ray run a recipe.

        Args:
            submission_id: a new id.
            recipe: the recipe's file.
            out: the run directory.
            log: the file that the job's output is added to.
            resume: go on with the run in `out`.

        Raises:
            RayAway: Ray did not take it, or its answer was lost.
        """
        words = [RAYWARD, "run", str(recipe), "--out", str(out), *(["--resume"] if resume else [])]
        # What Ray puts into a job's RAY_ADDRESS may be another Ray of the same machine.
        words += ["--address", _address()]
        # A shell in between would keep signals from the program. Ray's own copy of the output
        # goes with the cluster, and can be had only whole.
        # A relative path in a recipe must not mean a file beside the service.
        folder = shlex.quote(str(log.parent))
        entrypoint = f"cd {folder} && exec {shlex.join(words)} >> {shlex.quote(str(log))} 2>&1"
        stop = {"RAY_JOB_STOP_WAIT_TIME_S": str(self._stop_grace_s)}
        try:
            self._connected().submit_job(
                entrypoint=entrypoint, submission_id=submission_id, runtime_env={"env_vars": stop}
            )
        except (RuntimeError, OSError) as error:
            raise self._away(error) from error

    def find(self, submission_id: str) -> RayJob | None:
        """A job by its id; None where this cluster does not know it.

        Raises:
            RayAway: Ray does not say.
        """
        try:
            return _job(self._connected().get_job_info(submission_id))
        except (RuntimeError, OSError) as error:
            if _is_unknown(error):
                return None
            raise self._away(error) from error

    def stop(self, submission_id: str) -> None:
        """Ask a job to stop; Ray kills it after the time that its environment says.

        Raises:
            RayAway: Ray cannot be asked.
        """
        try:
            self._connected().stop_job(submission_id)
        except (RuntimeError, OSError) as error:
            if not _is_unknown(error):
                raise self._away(error) from error

    def all(self) -> list[RayJob]:
        """Every job on this cluster that makes a run, whoever submitted it.

        Raises:
            RayAway: Ray does not say.
        """
        try:
            known = self._connected().list_jobs()
        except (RuntimeError, OSError) as error:
            raise self._away(error) from error
        jobs = [_job(details) for details in known if details.type == JobType.SUBMISSION]
        return [job for job in jobs if job.is_rayward]

    def log(self, submission_id: str) -> str:
        """All that Ray has of a job's output.

        Raises:
            RayAway: Ray does not say.
        """
        try:
            return str(self._connected().get_job_logs(submission_id))
        except (RuntimeError, OSError) as error:
            if _is_unknown(error):
                return ""
            raise self._away(error) from error

    def _connected(self) -> _Client:
        if self._client is None:
            # The client finds the dashboard by the cluster's address, and its token as Ray does.
            self._client = _Client(_address())
        return self._client

    def _away(self, error: Exception) -> RayAway:
        # The dashboard may come back elsewhere.
        self._client = None
        lines = str(error).strip().splitlines() or [""]
        return RayAway(f"{type(error).__name__}: {lines[0]} ... {lines[-1]}")


class RayJobList:
    """What Ray has said of its jobs, at most a moment ago; while it does not answer, the last.

    Args:
        ray_jobs: whom to ask. It is asked by one thread at a time: where Ray hangs, so do threads.
    """

    def __init__(self, ray_jobs: RayJobs) -> None:
        self._ray = ray_jobs
        self._said: list[RayJob] = []
        self._asked = -math.inf  # monotonic seconds
        self._asking: asyncio.Task[list[RayJob]] | None = None

    async def get(self) -> list[RayJob]:
        """Every job that makes a run."""
        if self._asking is None:
            if time.monotonic() - self._asked < _LIST_KEPT_S:
                return self._said
            self._asked = time.monotonic()
            self._asking = asyncio.create_task(self._ask())
        asking = self._asking
        patience = self._asked + _LIST_TIMEOUT_S - time.monotonic()
        done, _ = await asyncio.wait({asking}, timeout=max(patience, 0.0))
        # History is answered from disk, with what Ray said last.
        return asking.result() if done else self._said

    async def _ask(self) -> list[RayJob]:
        try:
            self._said = await asyncio.to_thread(self._ray.all)
        except RayAway as error:
            logger.warning("Ray's job API: %s", error)
        finally:
            self._asking = None
        return self._said


def _address() -> str:
    return str(ray.get_runtime_context().gcs_address)


def _job(details: JobDetails) -> RayJob:
    return RayJob(
        submission_id=str(details.submission_id),
        state=_STATES[details.status],
        entrypoint=details.entrypoint,
        message=details.message,
        started=_time(details.start_time),
        ended=_time(details.end_time),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _is_unknown(error: Exception) -> bool:
    # The client has no other word for it.
    return "status code 404" in str(error)


def _words(entrypoint: str) -> list[str]:
    try:
        return shlex.split(entrypoint)
    except ValueError:
        # Somebody's shell, with quotes that shlex does not follow.
        return entrypoint.split()
