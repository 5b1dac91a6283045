"""What run directories say, on a disk or in an object store."""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from pyarrow import fs
from pydantic import JsonValue, TypeAdapter

from rayward.cluster.atomic import join, resolve
from rayward.cluster.errors import InputError
from rayward.cluster.runs.run_directory import RunStatus
from rayward.cluster.runs.run_lock import LOCK, LockOwner, owner_of
from rayward.services.http.errors import ApiError, writable
from rayward.services.jobs.files import Line, metric_row, read_if_there, read_lines, read_part
from rayward.services.jobs.schemas import LISTED_NAME, JobState

# A run of another machine's that has written nothing for so long is taken for dead. Loading a
# large model, or measuring one, writes nothing for minutes.
_SILENT_S = 300.0
_JSON = TypeAdapter(dict[str, JsonValue])


@dataclass(frozen=True)
class RunFiles:
    """One run directory, read from outside; nothing need be there yet."""

    filesystem: fs.FileSystem
    path: str

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self._is_file("manifest.json")

    def can_resume(self) -> bool:
        """Whether `rayward run --resume` would go on here."""
        return self._is_file("manifest.json") and self._is_file("recipe.yaml")

    def manifest(self) -> dict[str, Any]:
        """Where the run comes from; empty where that cannot be read."""
        return _json_object(self._read("manifest.json"))

    def ray_jobs(self) -> set[str]:
        """The submission ids of the Ray jobs that the run began in or was resumed in."""
        manifest = self.manifest()
        resumed = manifest.get("resumed")
        parts = [manifest, *(resumed if isinstance(resumed, list) else [])]
        found = [part.get("ray_job") for part in parts if isinstance(part, dict)]
        return {one for one in found if isinstance(one, str)}

    def status(self) -> RunStatus | None:
        """How the run says that it stands; None where it does not."""
        data = self._read("status.json")
        try:
            return None if data is None else RunStatus.model_validate_json(data)
        except ValueError:
            # A folder that looks like a run may be somebody's own.
            return None

    def config(self) -> dict[str, Any] | None:
        """The run's recipe; None where there is none that can be read."""
        return _yaml_object(self._read("recipe.yaml"))

    def stages_done(self) -> list[str]:
        """The stages and measurements that are complete, by the time of their files."""
        selector = fs.FileSelector(f"{self.path}/stages", recursive=True, allow_not_found=True)
        found = [
            (info.mtime_ns or 0, info.path.removeprefix(f"{self.path}/stages/"))
            for info in self.filesystem.get_file_info(selector)
            if info.type == fs.FileType.File and info.path.endswith(".json")
        ]
        return [name.removesuffix(".json") for _, name in sorted(found)]

    def samples(self) -> list[str]:
        """The policies whose answers can be read."""
        selector = fs.FileSelector(f"{self.path}/samples", allow_not_found=True)
        names = [
            info.base_name
            for info in self.filesystem.get_file_info(selector)
            if info.type == fs.FileType.File and info.base_name.endswith(".parquet")
        ]
        return sorted(name.removesuffix(".parquet") for name in names)

    def sample_rows(self, stage: str, offset: int, limit: int) -> tuple[list[dict[str, Any]], int]:
        """Answers after a stage, and how many there are.

        Raises:
            ApiError: there are none, or they cannot be read.
        """
        try:
            with self.filesystem.open_input_file(f"{self.path}/samples/{stage}.parquet") as file:
                table = pq.read_table(file)
        except FileNotFoundError as error:
            raise ApiError(404, f"no samples of the stage {stage!r}", "stage") from error
        except ValueError as error:
            raise _unreadable(f"samples/{stage}.parquet") from error
        return table.slice(min(offset, len(table)), limit).to_pylist(), len(table)

    def metric_lines(self, offset: int) -> Iterator[Line]:
        """Lines of metrics from `offset` bytes on, as many as are there."""
        return read_lines(self.filesystem, f"{self.path}/metrics.jsonl", offset)

    def metrics_before(self, offset: int, count: int) -> bytes:
        """The last `count` bytes of metrics before `offset`; fewer where there are not so many."""
        start = max(offset - count, 0)
        data = read_part(self.filesystem, f"{self.path}/metrics.jsonl", start, offset - start)
        return data if len(data) == offset - start else b""

    def metric_rows(
        self, stage: str | None, offset: int, limit: int
    ) -> tuple[list[dict[str, Any]], int]:
        """At most `limit` rows of metrics from `offset` bytes on, and where to go on.

        Raises:
            ApiError: they cannot be read.
        """
        rows: list[dict[str, Any]] = []
        for line in self.metric_lines(offset):
            if len(rows) == limit:
                break
            row = self.metric_row(line)
            if stage is None or row["stage"] == stage:
                rows.append(row)
            offset = line.end
        return rows, offset

    def metric_row(self, line: Line) -> dict[str, Any]:
        """What a line of metrics says.

        Raises:
            ApiError: it cannot be read.
        """
        try:
            return metric_row(line)
        except ValueError as error:
            raise _unreadable("metrics.jsonl") from error

    def owner_is_gone(self) -> bool:
        """Whether the process that last wrote here ran on this machine, and is no more."""
        owner = self._owner()
        return owner is not None and owner.is_here and not os.path.exists(f"/proc/{owner.pid}")

    def is_at_work(self, since: datetime | None) -> bool:
        """Whether a job's process, begun after `since`, may still write here, whatever Ray knows.

        A process of this machine can be looked for; of another's there is only what it writes.
        """
        status, owner = self.status(), self._owner()
        if owner is None or status is None or status.state != "running":
            return False
        if since is not None and status.updated < since:
            return False
        if owner.is_here:
            # A job's command names its run; another process may have the same number since.
            return os.path.basename(self.path).encode() in _command(owner.pid)
        names = ("status.json", "metrics.jsonl")
        found = self.filesystem.get_file_info([f"{self.path}/{name}" for name in names])
        written = max((info.mtime_ns or 0) / 1e9 for info in found)
        return time.time() - written < _SILENT_S

    def _owner(self) -> LockOwner | None:
        return owner_of(self._read(LOCK) or b"")

    def _read(self, name: str) -> bytes | None:
        return read_if_there(self.filesystem, f"{self.path}/{name}")

    def _is_file(self, name: str) -> bool:
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        return bool(info.type == fs.FileType.File)


class RunsRoot:
    """The folder under which runs lie.

    Args:
        uri: the folder, local or any URI of pyarrow.fs.

    Raises:
        InputError: names jobs.runs_root; it is no such URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self.filesystem, self.path = resolve(uri)
        except InputError as error:
            raise InputError("jobs.runs_root", uri, error.expected) from error
        self._runs: dict[str, dict[str, Any]] = {}

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def run(self, name: str) -> RunFiles:
        """A run by its name; it need not be there."""
        return RunFiles(self.filesystem, f"{self.path}/{name}")

    def place_of(self, name: str) -> str:
        """A run's own place, for people."""
        if "://" not in self.uri:
            return f"{self.path}/{name}"
        # What stands before the host, or behind a `?`, may be a login.
        scheme, _, rest = self.uri.partition("://")
        host, slash, path = rest.partition("?")[0].partition("/")
        return join(f"{scheme}://{host.rpartition('@')[2]}{slash}{path}", name)

    def part(self, name: str, offset: int, limit: int) -> tuple[bytes, bool]:
        """A part of a file, and whether it is the last."""
        # One byte more says whether anything follows.
        data = read_part(self.filesystem, f"{self.path}/{name}", offset, limit + 1)
        return data[:limit], len(data) <= limit

    def names(self) -> list[str]:
        """The runs that are there, whoever started them."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        folders = [
            info.base_name
            for info in self.filesystem.get_file_info(selector)
            if info.type == fs.FileType.Directory and re.fullmatch(LISTED_NAME, info.base_name)
        ]
        unknown = [name for name in folders if name not in self._runs]
        for name in unknown:
            if self.run(name).exists():
                # A run's origin never changes.
                self._runs[name] = self.run(name).manifest()
        return [name for name in folders if name in self._runs]

    def begun_in(self, ray_job: str) -> str | None:
        """The run that began as a Ray job, of those that `names` has found."""
        return next(
            (name for name, run in self._runs.items() if run.get("ray_job") == ray_job), None
        )

    def origin(self, name: str) -> tuple[str | None, datetime | None]:
        """The recipe's name and the time of creation of a run that `names` has found."""
        manifest = self._runs[name]
        run, created = manifest.get("run"), manifest.get("created")
        try:
            when = datetime.fromisoformat(created) if isinstance(created, str) else None
        except ValueError:
            when = None
        if when is not None and when.tzinfo is None:
            when = when.astimezone()
        return (writable(run) if isinstance(run, str) else None), when


def state_of(status: RunStatus | None) -> JobState | None:
    """The state of a job whose run has this status and that nobody is running."""
    if status is None:
        return None
    if status.state in ("running", "stopped"):
        return "interrupted"
    return "succeeded" if status.state == "succeeded" else "failed"


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _unreadable(name: str) -> ApiError:
    return ApiError(409, f"{name} of this run cannot be read", code="unreadable")


def _json_object(data: bytes | None) -> dict[str, Any]:
    try:
        document = json.loads(data or b"null")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _yaml_object(data: bytes | None) -> dict[str, Any] | None:
    try:
        # The C parser is ten times faster; a recipe has hundreds of lines.
        # YAML has more than JSON: dates, keys that are numbers, loops, infinities.
        document = _JSON.validate_python(yaml.load(data or b"", yaml.CSafeLoader))
        json.dumps(document, allow_nan=False)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return document
