"""How much comes in, and how slowly: bodies, and the number of requests in work."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.errors import ApiError, error_response, unavailable

# What must be answered also where there is no room.
_UNCOUNTED_PATHS = ("/health", "/metrics")


class _Refused(Exception):
    """The body that is being read is longer than allowed, or comes too slowly."""


class BodyLimit:
    """ASGI middleware that answers 413 to bodies that are too long, and 408 to slow ones.

    A body is refused by its Content-Length before any of it is read, and one that is sent in
    chunks, or is longer than it said, as soon as too much has come.

    Args:
        app: the rest of the application.
        limit: longest body, in bytes.
        timeout_s: how long a body may take to come. Serve's own time-out is one that a client's
            header can switch off.
    """

    def __init__(self, app: ASGIApp, limit: int, timeout_s: float) -> None:
        self._app = app
        self._limit = limit
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lengths = {value for name, value in scope["headers"] if name == b"content-length"}
        if len(lengths) > 1 or not all(map(bytes.isdigit, lengths)):
            error = ApiError(400, "Content-Length must be one whole number")
            await error_response(error)(scope, receive, send)
            return
        if any(_is_more(length, self._limit) for length in lengths):
            await error_response(self._too_long())(scope, receive, send)
            return
        read = 0
        started = False
        is_whole = False
        refusal: ApiError | None = None
        deadline = asyncio.get_running_loop().time() + self._timeout_s

        async def count() -> Message:
            nonlocal read, is_whole, refusal
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refusal = ApiError(408, f"the body took longer than {self._timeout_s:g} s")
                raise _Refused from None
            read += len(message.get("body", b""))
            if read > self._limit:
                refusal = self._too_long()
                raise _Refused
            is_whole = not message.get("more_body", False)
            return message

        async def unless_refused(message: Message) -> None:
            nonlocal started
            # Frameworks turn an error while a body is read into an answer of their own.
            if started or refusal is None:
                started = True
                await send(message)

        try:
            await self._app(scope, count, unless_refused)
        except* _Refused:  # what streams an answer raises errors in groups
            if started:
                raise
        if refusal is not None and not started:
            await error_response(refusal)(scope, receive, send)

    def _too_long(self) -> ApiError:
        return ApiError(413, f"the body is longer than {self._limit} bytes", code="too_long")


def _is_more(digits: bytes, limit: int) -> bool:
    digits = digits.lstrip(b"0")
    # By its length first, because Python does not read numbers of any length.
    return len(digits) > len(str(limit)) or int(digits or b"0") > limit


class Room:
    """ASGI middleware that answers 503 at once while too many requests are in work.

    Args:
        app: the rest of the application.
        limit: requests in work at the same time, at most; a streamed answer is in work until its
            end. Health and metrics do not count.
        event_streams: streams of a job's events, at most. They last as long as the job and do
            little, so they take nobody else's room.
        retry_after_s: what the 503 says in Retry-After.
    """

    def __init__(self, app: ASGIApp, limit: int, event_streams: int, retry_after_s: int) -> None:
        self._app = app
        self._limits = {"requests": limit, "event streams": event_streams}
        self._in_work = dict.fromkeys(self._limits, 0)
        self._retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED_PATHS:
            await self._app(scope, receive, send)
            return
        kind = "event streams" if scope["path"].endswith("/events") else "requests"
        limit = self._limits[kind]
        if self._in_work[kind] >= limit:
            error = unavailable(f"{limit} {kind} are in work", self._retry_after_s)
            await error_response(error)(scope, receive, send)
            return
        self._in_work[kind] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_work[kind] -= 1
