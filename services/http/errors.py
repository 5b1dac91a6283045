"""Every HTTP error as one JSON body, in the form that OpenAI's clients read.

{"error": {"message": "...", "type": "not_found_error", "param": "model", "code": null}}
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from ray.exceptions import RayActorError, WorkerCrashedError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
)
from starlette.exceptions import HTTPException

from rayward.cluster.errors import InputError, UnscoredError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# What a replica that is full, starting, stopping or dead answers; all pass, so a client may retry.
UNAVAILABLE = (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
    RayActorError,
    WorkerCrashedError,
    TimeoutError,
)


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    """For a person."""
    type: str
    """The kind of error, as OpenAI names them."""
    param: str | None
    """The field of the request that is wrong, dotted, if one is."""
    code: str | None
    """The kind of error, for programs, where `type` does not say enough."""


class ErrorBody(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail


class ApiError(Exception):
    """Ends a request with a status and the body above.

    Args:
        status: HTTP status, 4xx or 503.
        message: for a person.
        param: the field that is wrong.
        code: for programs.
        headers: more headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def error_response(error: ApiError) -> JSONResponse:
    """The answer that an error stands for."""
    detail = ErrorDetail(
        message=writable(error.message),
        type=_TYPES.get(error.status, "invalid_request_error"),
        param=None if error.param is None else writable(error.param),
        code=error.code,
    )
    body = ErrorBody(error=detail).model_dump()
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def writable(text: str) -> str:
    """A text that UTF-8 has: half a surrogate pair, which JSON lets in, is written as `\\ud800`."""
    return text.encode(errors="backslashreplace").decode()


def unavailable(reason: str, retry_after_s: int, code: str = "overloaded") -> ApiError:
    """503: the same request may work after `retry_after_s` seconds."""
    return ApiError(503, reason, code=code, headers={"Retry-After": str(retry_after_s)})


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may give, for its place in the OpenAPI document."""
    return {status: {"model": ErrorBody} for status in statuses}


def documented_beside_events(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """As `documented`, of a route whose answers are server-sent events: its errors are JSON.

    FastAPI takes an answer's type from the route; `ErrorBody` must be in the document already.
    """
    schema = {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}
    body = {"description": "An error", "content": {"application/json": {"schema": schema}}}
    return dict.fromkeys(statuses, body)


def handle_errors(api: FastAPI, retry_after_s: int, bad_request: Mapping[str, int]) -> None:
    """Make every error of an API one JSON body.

    Args:
        api: the API.
        retry_after_s: what a 503 says in Retry-After.
        bad_request: by path, the status of bad input where it is not 422.
    """

    async def own(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error_response(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        # The first part says where it was: body, query, path.
        param = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return bad(request, f"{param}: {first['msg']}", param)

    async def wrong(request: Request, error: Exception) -> JSONResponse:
        # Ray wraps what a replica raised, with its traceback, which is nobody's business.
        cause = getattr(error, "cause", error)
        assert isinstance(cause, InputError)
        return bad(request, str(cause), cause.field)

    def bad(request: Request, message: str, param: str) -> JSONResponse:
        status = bad_request.get(request.url.path, 422)
        return error_response(ApiError(status, message, param, "invalid_value"))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return error_response(
            ApiError(error.status_code, str(error.detail), headers=error.headers or {})
        )

    async def unscored(request: Request, error: Exception) -> JSONResponse:
        reason = str(getattr(error, "cause", error))
        return error_response(unavailable(reason, retry_after_s, "unscored"))

    async def away(request: Request, error: Exception) -> JSONResponse:
        reason = f"a part of the service is busy or restarting ({type(error).__name__})"
        return error_response(unavailable(reason, retry_after_s))

    api.add_exception_handler(ApiError, own)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(InputError, wrong)
    api.add_exception_handler(UnscoredError, unscored)
    api.add_exception_handler(HTTPException, http)
    for kind in UNAVAILABLE:
        api.add_exception_handler(kind, away)
