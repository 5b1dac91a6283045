"""How much comes in, and how slowly: bodies, the number of requests in work, and waiting for the
last of them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayward.services.http.errors import ApiError, error_response, unavailable

# What must be answered also where there is no room.
_UNCOUNTED_PATHS = ("/health", "/ready", "/metrics")
_STREAMS = "event streams"


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


class InWork:
    """The requests that are in work, and whether more may come."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._streams: set[asyncio.Timeout] = set()
        self._gone = asyncio.Event()
        self.is_closed = False

    def count(self, kind: str) -> int:
        """How many of a kind there are."""
        return self._counts[kind]

    @contextmanager
    def one(self, kind: str) -> Iterator[None]:
        """One more of a kind for the time of the block."""
        self._counts[kind] += 1
        try:
            yield
        finally:
            self._counts[kind] -= 1
            if not self._counts.total():
                self._gone.set()

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[asyncio.Timeout]:
        """What does not end by itself is ended at closing, by a TimeoutError in the block."""
        async with asyncio.timeout(None) as until:
            self._streams.add(until)
            try:
                yield until
            finally:
                self._streams.discard(until)

    async def drain(self, timeout_s: float) -> int:
        """Let no more in, end the streams, and wait for the others: how many are left then."""
        self.is_closed = True
        now = asyncio.get_running_loop().time()
        while self._streams:  # each once: one that is ending must not be told again
            self._streams.pop().reschedule(now)
        self._gone.clear()
        if self._counts.total():
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._gone.wait()
        return self._counts.total()


class Room:
    """ASGI middleware that answers 503 at once while too many requests are in work.

    Args:
        app: the rest of the application.
        limit: requests in work at the same time, at most; a streamed answer is in work until its
            end. Health and metrics do not count.
        event_streams: streams of a job's events, at most. They last as long as the job and do
            little, so they take nobody else's room.
        retry_after_s: what the 503 says in Retry-After.
        in_work: where they are counted.
    """

    def __init__(
        self, app: ASGIApp, limit: int, event_streams: int, retry_after_s: int, in_work: InWork
    ) -> None:
        self._app = app
        self._limits = {"requests": limit, _STREAMS: event_streams}
        self._retry_after_s = retry_after_s
        self._in_work = in_work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED_PATHS:
            await self._app(scope, receive, send)
            return
        kind = _STREAMS if scope["path"].endswith("/events") else "requests"
        limit = self._limits[kind]
        if self._in_work.is_closed:
            await self._refuse("the service is stopping", scope, receive, send)
        elif self._in_work.count(kind) >= limit:
            await self._refuse(f"{limit} {kind} are in work", scope, receive, send)
        else:
            with self._in_work.one(kind):
                serve = self._stream if kind == _STREAMS else self._app
                await serve(scope, receive, send)

    async def _refuse(self, reason: str, scope: Scope, receive: Receive, send: Send) -> None:
        error = unavailable(reason, self._retry_after_s)
        await error_response(error)(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Events until the service stops; whoever follows them asks again where they ended."""
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with self._in_work.stream() as until:
                await self._app(scope, receive, note)
        except TimeoutError:
            if not until.expired():
                raise
            if started:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await self._refuse("the service is stopping", scope, receive, send)
