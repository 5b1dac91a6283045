"""What is kept of every job that was submitted, beside the runs.

RUNS_ROOT/.jobs/ID/recipe.yaml   what runs
                   job.json      how the job stands, written last
                   log.txt       what it said
"""

import hashlib
import json
import secrets
from datetime import UTC, datetime

import yaml
from pyarrow import fs
from pydantic import BaseModel, ConfigDict

from cluster.atomic import join, write_bytes
from cluster.config.recipe import Recipe
from services.job_files import read_if_there
from services.job_runs import RunsRoot
from services.job_schemas import JobKind, JobState

FOLDER = ".jobs"
_LONGEST_NAME = 36  # with the time, chance and the number of an attempt an id has 63 letters


class JobRecord(BaseModel):
    """A job that was submitted."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: JobKind
    name: str
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

    def load(self) -> dict[str, JobRecord]:
        """All records, by id.

        Raises:
            ValueError: one cannot be read.
        """
        filesystem = self._root.filesystem
        selector = fs.FileSelector(f"{self._root.path}/{FOLDER}", allow_not_found=True)
        found: dict[str, JobRecord] = {}
        for info in filesystem.get_file_info(selector):
            data = read_if_there(filesystem, f"{info.path}/job.json")
            # Without it, the writer was cut off before it had answered.
            if data is not None:
                record = JobRecord.model_validate_json(data)
                found[record.id] = record
        return found

    def add(self, record: JobRecord, recipe: Recipe) -> None:
        """Write a new job: from here on it cannot be lost."""
        document = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
        write_bytes(join(self._root.uri, record.recipe), document.encode())
        self.write(record)

    def write(self, record: JobRecord) -> None:
        """Write how a job stands."""
        data = record.model_dump_json(indent=1).encode()
        write_bytes(join(self._root.uri, FOLDER, record.id, "job.json"), data)


def new_id(name: str, now: datetime) -> str:
    """A new job's id: its recipe's name, the time (UTC) and six digits of chance."""
    short = name[:_LONGEST_NAME].rstrip("-")
    return f"{short}-{now.astimezone(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def digest(content: object) -> str:
    """The hexadecimal SHA-256 of JSON content, whatever the order of its keys."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
