"""The routes of jobs. Requests go on to the job service; events come from asking it often."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.security import HTTPBearer
from fastapi.sse import EventSourceResponse, ServerSentEvent
from ray.serve.handle import DeploymentHandle

from rayward.services.http.access import Access, caller, needs
from rayward.services.http.backends import Backends
from rayward.services.http.errors import UNAVAILABLE, ApiError, documented, documented_beside_events
from rayward.services.jobs.events import Cursor, EventPage, parse_cursor
from rayward.services.jobs.refusals import Refusal
from rayward.services.jobs.schemas import (
    LISTED_NAME,
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

_LOOK_EVERY_S = 1.0
_FURTHEST = 2**53  # what JSON numbers hold exactly, in every language
_STAGE_NAME = r"^[a-z0-9_][a-z0-9_-]{0,62}$"
_bearer = HTTPBearer(auto_error=False)
_T = TypeVar("_T")
_Id = Annotated[str, Path(alias="id", pattern=LISTED_NAME, description="A job's id.")]
_Offset = Annotated[int, Query(ge=0, le=_FURTHEST)]
_Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same key twice, with the same body, is one job.",
    ),
]
_LastEventId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", description="Go on behind the event of this id."),
]
_READING: dict[str, Any] = {
    "dependencies": [Depends(needs("jobs:read"))],
    "responses": documented(401, 403, 404, 409, 422, 429, 503),
}
_WRITING: dict[str, Any] = {
    "dependencies": [Depends(needs("jobs:write"))],
    "responses": documented(401, 403, 404, 409, 413, 422, 429, 503),
}


class _Asking:
    """Asks the job service, and raises what it refuses."""

    def __init__(self, service: DeploymentHandle, timeout_s: float) -> None:
        self._service = service
        self._timeout_s = timeout_s

    async def __call__(self, kind: type[_T], method: str, *arguments: object) -> _T:
        async with asyncio.timeout(self._timeout_s):
            found = await getattr(self._service, method).remote(*arguments)
        if isinstance(found, Refusal):
            raise found.error()
        assert isinstance(found, kind)
        return found


def job_routes(backends: Backends) -> APIRouter:
    """`/v1/jobs` and what is below it."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    assert backends.jobs is not None
    ask = _Asking(backends.jobs, backends.settings.http.request_timeout_s)

    @router.post(
        "",
        status_code=201,
        dependencies=[Depends(needs("jobs:write"))],
        responses={
            200: {"model": Job, "description": "It was submitted before."},
            **documented(400, 401, 403, 409, 413, 422, 429, 503),
        },
    )
    async def submit(
        request: SubmitRequest,
        response: Response,
        asker: Annotated[str | None, Depends(caller)],
        key: _Key = None,
    ) -> Job:
        """Submit a recipe, or one stage of one; it runs when it is its turn."""
        # Whoever asks has idempotency keys of its own.
        own = None if key is None else f"{asker or ''} {key}"
        submitted = await ask(Submitted, "submit", request, own)
        if submitted.is_replay:
            response.status_code = 200
            response.headers["Idempotency-Replayed"] = "true"
        return submitted.job

    @router.get("", **_READING)
    async def jobs(
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        after: Annotated[str | None, Query(pattern=LISTED_NAME)] = None,
        state: JobState | None = None,
    ) -> JobList:
        """All jobs, newest first, also those that were started another way."""
        return await ask(JobList, "jobs", limit, after, state)

    @router.get("/{id}", **_READING)
    async def job(name: _Id) -> JobDetail:
        """A job, and what there is of its run."""
        return await ask(JobDetail, "job", name)

    @router.get("/{id}/logs", **_READING)
    async def logs(
        name: _Id,
        offset: _Offset = 0,
        limit: Annotated[int, Query(ge=1, le=1024 * 1024)] = 64 * 1024,
    ) -> LogPage:
        """What a job said, by offsets in bytes."""
        return await ask(LogPage, "log", name, offset, limit)

    @router.get("/{id}/metrics", **_READING)
    async def metrics(
        name: _Id,
        stage: Annotated[str | None, Query(max_length=63)] = None,
        offset: _Offset = 0,
        limit: Annotated[int, Query(ge=1, le=5000)] = 500,
    ) -> MetricsPage:
        """Numbers by step, of one stage or of all."""
        return await ask(MetricsPage, "metrics", name, stage, offset, limit)

    @router.get("/{id}/samples", **_READING)
    async def samples(
        name: _Id,
        stage: Annotated[str, Query(pattern=_STAGE_NAME)],
        offset: _Offset = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> SamplesPage:
        """A policy's answers on held-out prompts, and how they were judged."""
        return await ask(SamplesPage, "samples", name, stage, offset, limit)

    @router.post("/{id}/cancel", status_code=202, **_WRITING)
    async def cancel(name: _Id) -> Job:
        """Cancel a job: one that waits at once, one that runs at its next step's end."""
        return await ask(Job, "cancel", name)

    @router.post("/{id}/resume", status_code=202, **_WRITING)
    async def resume(name: _Id) -> Job:
        """Go on with a job that failed, was cancelled or interrupted, in its run directory."""
        return await ask(Job, "resume", name)

    async def place(name: _Id, last: _LastEventId = None) -> tuple[str, Cursor]:
        cursor = parse_cursor(last) if last else Cursor()
        if cursor is None:
            raise ApiError(422, "Last-Event-ID: no id of an event", "Last-Event-ID")
        # A stream that has begun can no longer say that there is nothing to stream.
        await ask(EventPage, "events", name, cursor)
        return name, cursor

    @router.get(
        "/{id}/events",
        response_class=EventSourceResponse,
        dependencies=_READING["dependencies"],
        responses=documented_beside_events(401, 403, 404, 409, 422, 429, 503),
    )
    async def events(
        request: Request, place: Annotated[tuple[str, Cursor], Depends(place)]
    ) -> AsyncIterator[ServerSentEvent]:
        """What happens to a job, as server-sent events, until it has come to its end.

        `state`: how it stands. `metrics`: the numbers of one step. `reset`: the metrics so far are
        taken back, because the run went on from an earlier step; those that stand follow.
        """
        name, cursor = place
        # A key may be revoked while its stream is open.
        while await _may_still_read(request):
            try:
                page = await ask(EventPage, "events", name, cursor)
            except (*UNAVAILABLE, ApiError) as error:
                # The job service is being replaced, or has too much to do; a stream waits.
                # What has begun to stream can no longer be an error.
                if isinstance(error, ApiError) and error.status != 503:
                    return
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            for one in page.events:
                yield ServerSentEvent(event=one.event, id=str(one.cursor), data=one.data)
                cursor = one.cursor
            if page.final:
                return
            if not page.more:
                await asyncio.sleep(_LOOK_EVERY_S)

    return router


async def _may_still_read(request: Request) -> bool:
    access: Access = request.app.state.access
    try:
        access.require(request, await _bearer(request), "jobs:read")
    except ApiError:
        return False
    return True
