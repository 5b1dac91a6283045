"""What is asked of jobs over HTTP, and what is answered."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, JsonValue
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from rayward.cluster.config.recipe import Recipe

JobKind = Literal["recipe", "stage"]
JobState = Literal[
    "queued", "running", "cancelling", "cancelled", "succeeded", "failed", "interrupted"
]
JobOrigin = Literal["api", "ray", "directory"]

FINAL: tuple[JobState, ...] = ("cancelled", "succeeded", "failed", "interrupted")
"""The states that a job stays in by itself."""
RESUMABLE: tuple[JobState, ...] = ("cancelled", "failed", "interrupted")
"""The states that a job can be resumed from."""
LISTED_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""What an id looks like, also of runs that somebody started by hand in a folder of their naming."""


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class _AsRecipe:
    """In the OpenAPI document a recipe; where it is read, any object, which is looked at later.

    A recipe that is wrong is told by the name of its field, as `rayward run` tells it.
    """

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(Recipe.__pydantic_core_schema__)


class SubmitRequest(_Schema):
    """A job to run."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: JobKind
    """`recipe`: all its stages. `stage`: a recipe of exactly one stage."""
    config: Annotated[dict[str, JsonValue], _AsRecipe()]
    """The recipe. Paths are the server's, absolute."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Of the jobs that wait the one with the highest goes first, then the oldest."""


class Job(_Schema):
    """How a job stands. What is not known of a run that was started by hand is null."""

    id: str
    """The name of the run directory under the runs root; or Ray's id, where there is none."""
    origin: JobOrigin
    """Who started it: this API, `ray job submit`, or somebody by hand."""
    kind: JobKind | None
    """What was submitted."""
    name: str | None
    """The recipe's name."""
    state: JobState
    """How it stands."""
    priority: int | None
    """Its rank in the queue."""
    submitted: datetime | None
    """When it was submitted, or the run was created."""
    started: datetime | None
    """When it was last handed over to Ray."""
    ended: datetime | None
    """When it last came to an end."""
    attempt: int | None
    """1, and one more for each time that it was resumed."""
    stage: str | None
    """The stage that is running, or ran last."""
    error: str | None
    """Why it failed, in one line."""
    run: str | None
    """The run directory."""


class Submitted(_Schema):
    """What became of a submission."""

    job: Job
    """The job."""
    is_replay: bool
    """Whether it was submitted before, with the same idempotency key."""


class JobDetail(Job):
    """A job and what there is of its run."""

    stages_done: list[str]
    """Stages and measurements that are complete."""
    samples: list[str]
    """The policies whose answers on held-out prompts can be read."""
    config: dict[str, JsonValue] | None
    """The recipe, every default spelled out."""


class JobList(_Schema):
    """Jobs, newest first."""

    jobs: list[Job]
    """One page."""
    next: str | None
    """The `after` of the next page; null on the last."""


class LogPage(_Schema):
    """A part of a job's output."""

    text: str
    """UTF-8; bytes that are none are replaced."""
    next_offset: int
    """Where to go on, in bytes."""
    complete: bool
    """Whether the job has ended and nothing follows."""


class MetricsPage(_Schema):
    """Rows of metrics, in the order in which they were written."""

    rows: list[dict[str, Any]]
    """Each has `stage`, `step`, `time` in seconds since 1970, and numbers by name."""
    next_offset: int
    """Where to go on, in bytes; a run that was resumed may have taken rows back."""


class SamplesPage(_Schema):
    """Answers on held-out prompts after a stage."""

    rows: list[dict[str, Any]]
    """As in the run's samples/STAGE.parquet."""
    total: int
    """How many answers there are."""


class StateEvent(_Schema):
    """The data of an event `state`: how a job stands now."""

    state: JobState
    stage: str | None
    stages_done: list[str]
    error: str | None


class MetricsEvent(_Schema):
    """The data of an event `metrics`: the numbers of one step."""

    stage: str
    step: int
    time: float
    metrics: dict[str, float]


class ResetEvent(_Schema):
    """The data of an event `reset`: metrics that were told are taken back, and told anew."""
