"""What is kept of every job that was submitted, beside the runs.

RUNS_ROOT/.jobs/ID/recipe.yaml   what runs
                   job.json      how the job stands, written last
                   log.txt       what it said
                lease.json       which service keeps them (rayward.services.jobs.lease)
"""

import hashlib
import json
import logging
import re
import secrets
from datetime import UTC, datetime

import yaml
from pyarrow import fs
from pydantic import BaseModel, ConfigDict, Field

from rayward.cluster.atomic import join, write_bytes
from rayward.cluster.config.recipe import Recipe
from rayward.services.jobs.files import read_if_there
from rayward.services.jobs.runs import RunsRoot
from rayward.services.jobs.schemas import LISTED_NAME, JobKind, JobState

FOLDER = ".jobs"
_FILE = "job.json"
_LONGEST_NAME = 36  # with the time, chance and the number of an attempt an id has 63 letters

logger = logging.getLogger(__name__)


class JobRecord(BaseModel):
    """A job that was submitted."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: JobKind | None
    name: str | None
    priority: int
    state: JobState
    submitted: datetime
    queued: datetime
    """When it last got in line; the order of jobs of one priority."""
    attempt: int = 1
    started: datetime | None = None
    ended: datetime | None = None
    error: str | None = None
    accepted: bool = False
    """Whether Ray has taken this attempt."""
    cancel_requested: datetime | None = None
    idempotency_key: str | None = None
    """Digest of the key that it was submitted with."""
    request: str | None = None
    """Digest of the request."""
    unreadable: bool = Field(default=False, exclude=True)
    """Whether this stands for a record that could not be read, which is left as it is."""

    @property
    def submission_id(self) -> str:
        """What Ray calls this attempt; Ray refuses an id that it has seen."""
        return self.id if self.attempt == 1 else f"{self.id}-{self.attempt}"

    @property
    def log(self) -> str:
        """The file of the job's output, under the runs root."""
        return f"{FOLDER}/{self.id}/log.txt"

    @property
    def recipe(self) -> str:
        """The file of the job's recipe, under the runs root."""
        return f"{FOLDER}/{self.id}/recipe.yaml"


class Records:
    """Reads and writes records.

    Args:
        root: where the runs are.
    """

    def __init__(self, root: RunsRoot) -> None:
        self._root = root
        # A file that is as it was is not read again.
        self._known: dict[str, tuple[tuple[int, int], JobRecord]] = {}

    def load(self) -> dict[str, JobRecord]:
        """All records, by id; one that cannot be read is a job that has failed."""
        base = f"{self._root.path}/{FOLDER}"
        # A listing of all that is below costs a store less than a question for each job.
        selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
        known: dict[str, tuple[tuple[int, int], JobRecord]] = {}
        for info in self._root.filesystem.get_file_info(selector):
            name, _, file = info.path.removeprefix(f"{base}/").partition("/")
            # Without it, the writer was cut off before it had answered.
            if file != _FILE or not re.fullmatch(LISTED_NAME, name):
                continue
            version = (info.size, info.mtime_ns or 0)
            before = self._known.get(name)
            if before is not None and before[0] == version and info.mtime_ns is not None:
                known[name] = before
            elif (record := self._read(name, info.mtime)) is not None:
                known[name] = (version, record)
        self._known = known
        return {name: record for name, (_, record) in known.items()}

    def _read(self, name: str, written: datetime | None) -> JobRecord | None:
        try:
            data = read_if_there(
                self._root.filesystem, f"{self._root.path}/{FOLDER}/{name}/{_FILE}"
            )
            if data is None:
                return None
            record = JobRecord.model_validate_json(data)
            if record.id != name:
                raise ValueError(f"it is the record of {record.id!r}")
        except (ValueError, PermissionError) as error:
            # One bad file is no reason to keep nothing else.
            logger.warning("the record of the job %s: %s", name, error)
            when = (written or datetime.fromtimestamp(0, UTC)).astimezone(UTC)
            return JobRecord(
                id=name,
                kind=None,
                name=None,
                priority=0,
                state="failed",
                submitted=when,
                queued=when,
                error=f"{FOLDER}/{name}/{_FILE} cannot be read",
                unreadable=True,
            )
        return record

    def add(self, record: JobRecord, recipe: Recipe) -> None:
        """Write a new job: from here on it cannot be lost."""
        document = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
        write_bytes(join(self._root.uri, record.recipe), document.encode())
        self.write(record)

    def write(self, record: JobRecord) -> None:
        """Write how a job stands."""
        data = record.model_dump_json(indent=1).encode()
        write_bytes(join(self._root.uri, FOLDER, record.id, _FILE), data)


def new_id(name: str, now: datetime) -> str:
    """A new job's id: its recipe's name, the time (UTC) and six digits of chance."""
    short = name[:_LONGEST_NAME].rstrip("-")
    return f"{short}-{now.astimezone(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def digest(content: object) -> str:
    """The hexadecimal SHA-256 of JSON content, whatever the order of its keys."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
