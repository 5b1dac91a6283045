"""How much comes in: the length of a request's body, and the number of requests in work."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.errors import ApiError, error_response, unavailable

# What must be answered also where there is no room.
UNCOUNTED_PATHS = ("/health", "/metrics")


class _TooLong(Exception):
    """The body that is being read is longer than allowed."""


class BodyLimit:
    """ASGI middleware that answers 413 to bodies that are too long.

    A body is refused by its Content-Length before any of it is read, and one that is sent in
    chunks, or is longer than it said, as soon as too much has come.

    Args:
        app: the rest of the application.
        limit: longest body, in bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

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
            await self._refuse(scope, receive, send)
            return
        read = 0
        started = False

        async def count() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise _TooLong
            return message

        async def unless_too_long(message: Message) -> None:
            nonlocal started
            # Frameworks turn an error while a body is read into an answer of their own.
            if started or read <= self._limit:
                started = True
                await send(message)

        try:
            await self._app(scope, count, unless_too_long)
        except* _TooLong:  # what streams an answer raises errors in groups
            if started:
                raise
        if read > self._limit and not started:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = ApiError(413, f"the body is longer than {self._limit} bytes", code="too_long")
        await error_response(error)(scope, receive, send)


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
        retry_after_s: what the 503 says in Retry-After.
    """

    def __init__(self, app: ASGIApp, limit: int, retry_after_s: int) -> None:
        self._app = app
        self._limit = limit
        self._retry_after_s = retry_after_s
        self._in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"] in UNCOUNTED_PATHS:
            await self._app(scope, receive, send)
            return
        if self._in_work >= self._limit:
            error = unavailable(f"{self._limit} requests are in work", self._retry_after_s)
            await error_response(error)(scope, receive, send)
            return
        self._in_work += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_work -= 1
