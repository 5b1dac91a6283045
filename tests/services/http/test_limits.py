"""What comes in is bounded: bodies by their bytes, requests by their number."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from rayward.services.http.errors import handle_errors
from rayward.services.http.limits import BodyLimit, InWork, Room
from tests.loopback import listening

LIMIT = 1000
PATIENCE_S = 3.0


def sized_app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(BodyLimit, limit=LIMIT, timeout_s=PATIENCE_S)

    @app.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @app.post("/json")
    async def parsed(body: list[int]) -> int:
        return len(body)

    @app.post("/unread")
    async def unread() -> str:
        return "done"

    handle_errors(app, 1, {})
    return app


@pytest.fixture(scope="module")
def sized() -> Iterator[str]:
    with listening(sized_app()) as url:
        yield url


@pytest.mark.parametrize("header", ["", "x-request-timeout-seconds: 0\r\n"])
def test_a_body_that_does_not_come_is_not_waited_for(sized: str, header: str) -> None:
    place = urlsplit(sized)
    head = f"POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n{header}\r\n["
    with socket.create_connection((place.hostname, place.port), timeout=30) as slow:
        began = time.monotonic()
        slow.sendall(head.encode())
        answer = slow.recv(4096).decode()
        took = time.monotonic() - began
    assert answer.startswith("HTTP/1.1 408 ")
    assert PATIENCE_S <= took < PATIENCE_S + 60


def in_chunks(body: bytes, size: int = 100) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("length", [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 10 * LIMIT, 3_000_000])
def test_bodies_up_to_the_limit_are_read(sized: str, length: int, chunked: bool) -> None:
    body = b"x" * length
    answer = httpx.post(f"{sized}/raw", content=in_chunks(body, 50_000) if chunked else body)
    if length <= LIMIT:
        assert (answer.status_code, answer.json()) == (200, length)
    else:
        assert answer.status_code == 413
        assert answer.json()["error"] == {
            "message": "the body is longer than 1000 bytes",
            "type": "invalid_request_error",
            "param": None,
            "code": "too_long",
        }


def test_a_long_body_is_no_wrong_body(sized: str) -> None:
    """FastAPI makes 400 of any error while it reads a body."""
    headers = {"Content-Type": "application/json"}
    body = b"[" + b"1," * LIMIT + b"1]"
    for content in (body, in_chunks(body)):
        assert httpx.post(f"{sized}/json", content=content, headers=headers).status_code == 413


def exchange(url: str, head: bytes, body: bytes) -> bytes:
    """What a server answers to bytes as they are, until it closes or is silent for a second."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=5) as peer:
        peer.sendall(head.replace(b"\n", b"\r\n") + body)
        peer.settimeout(1)
        answer = b""
        try:
            while piece := peer.recv(65536):
                answer += piece
        except TimeoutError:
            pass
        return answer


@pytest.mark.parametrize("length", ["-1", "1e3", "+5", "0x10", "abc", "9" * 5000, "\u00b2", " "])
def test_a_content_length_that_is_none_is_the_clients_error(sized: str, length: str) -> None:
    head = f"POST /raw HTTP/1.1\nHost: x\nContent-Length: {length}\n\n".encode()
    status = exchange(sized, head, b"hello").split(b" ")[1]
    assert 400 <= int(status) < 500


def call(
    app: BodyLimit,
    headers: list[tuple[bytes, bytes]],
    pieces: list[bytes],
    sent: list[Message] | None = None,
) -> list[Message]:
    """What an ASGI application sends, whatever a web server would have refused before."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces] + [
        {"type": "http.request", "body": b"", "more_body": False}
    ]
    sent = [] if sent is None else sent

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/raw", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.mark.parametrize(
    ("lengths", "sent", "status"),
    [
        ([b"5"], 5, 200),
        ([b"1000"], 1000, 200),
        ([b"0001000"], 5, 200),
        ([b"1001"], 0, 413),
        ([b"9" * 5000], 0, 413),  # more digits than Python reads
        ([b"5"], 1001, 413),  # a lie
        ([b"5", b"6"], 5, 400),
        ([b"5", b"5"], 5, 200),
        ([b"-5"], 5, 400),
        ([b""], 5, 400),
        ([b"\xb2"], 5, 400),
        ([], 1000, 200),
        ([], 1001, 413),
    ],
)
def test_what_a_body_says_of_its_length(lengths: list[bytes], sent: int, status: int) -> None:
    headers = [(b"content-length", length) for length in lengths]
    messages = call(BodyLimit(reads_all, LIMIT, PATIENCE_S), headers, list(in_chunks(b"x" * sent)))
    assert messages[0]["status"] == status
    assert [message["type"] for message in messages] == [
        "http.response.start",
        "http.response.body",
    ]


def test_a_body_that_nobody_reads_does_no_harm(sized: str) -> None:
    with httpx.Client(base_url=sized) as client:
        for _ in range(3):
            assert client.post("/unread", content=b"x" * 500).json() == "done"
            assert client.post("/unread", content=b"x" * 5000).status_code == 413
            assert client.post("/raw", content=b"x" * 7).json() == 7


def test_an_answer_that_has_begun_is_cut_not_replaced() -> None:
    """A status cannot be taken back."""

    async def answers_first(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with asyncio.TaskGroup() as group:
            group.create_task(reads_all(scope, receive, send))

    sent: list[Message] = []
    with pytest.raises(ExceptionGroup):
        call(BodyLimit(answers_first, LIMIT, PATIENCE_S), [], [b"x" * (LIMIT + 1)], sent)
    assert [message.get("status") for message in sent] == [200]


def test_a_long_body_is_refused_whatever_the_application_makes_of_it() -> None:
    """Frameworks catch errors, or raise them in groups."""

    async def in_a_group(scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(reads_all(scope, receive, send))

    async def catches(scope: Scope, receive: Receive, send: Send) -> None:
        status = 200
        try:
            await receive()
        except Exception:  # noqa: BLE001
            status = 400
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    for app in (in_a_group, catches):
        for length, status in ((LIMIT, 200), (LIMIT + 1, 413)):
            sent = call(BodyLimit(app, LIMIT, PATIENCE_S), [], [b"x" * length])
            assert [message.get("status") for message in sent] == [status, None]


class Work:
    """An application whose requests take until they are let go."""

    def __init__(self, limit: int) -> None:
        self.started = 0
        self.ended = 0
        self.go = asyncio.Event()
        self.app = FastAPI()
        self.in_work = InWork()
        self.app.add_middleware(
            Room, limit=limit, event_streams=1, retry_after_s=3, in_work=self.in_work
        )

        @self.app.get("/slow")
        async def slow() -> str:
            self.loop = asyncio.get_running_loop()
            self.started += 1
            try:
                await self.go.wait()
            finally:
                self.ended += 1
            return "done"

        @self.app.get("/v1/jobs/one/events")
        @self.app.get("/stream")
        async def stream() -> StreamingResponse:
            async def pieces() -> AsyncIterator[bytes]:
                self.started += 1
                self.loop = asyncio.get_running_loop()
                try:
                    yield b"first "
                    await self.go.wait()
                    yield b"second"
                finally:
                    self.ended += 1

            return StreamingResponse(pieces())

        @self.app.get("/fails")
        async def fails() -> None:
            raise RuntimeError("on purpose")

        @self.app.get("/health")
        @self.app.get("/metrics")
        async def health() -> str:
            return "ok"

    async def drain(self, timeout_s: float) -> int:
        """In the loop of the application, which is not ours."""
        drained = asyncio.run_coroutine_threadsafe(self.in_work.drain(timeout_s), self.loop)
        return await asyncio.wrap_future(drained)

    async def until(self, started: int, ended: int = 0) -> None:
        async with asyncio.timeout(10):
            while (self.started, self.ended) != (started, ended):
                await asyncio.sleep(0.005)


def ask(work: Work, one: Callable[[httpx.AsyncClient, Work], Awaitable[None]]) -> None:
    """Run one with a client of the work's application, which listens on a port."""

    async def asked(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            await one(client, work)

    with listening(work.app) as url:
        asyncio.run(asked(url))


def test_beyond_the_room_requests_are_turned_away_at_once() -> None:
    async def one(client: httpx.AsyncClient, work: Work) -> None:
        slow = [asyncio.create_task(client.get("/slow")) for _ in range(3)]
        await work.until(3)
        start = time.monotonic()
        refused = await asyncio.gather(*(client.get("/slow") for _ in range(20)))
        assert time.monotonic() - start < 60
        assert {answer.status_code for answer in refused} == {503}
        assert {answer.headers["Retry-After"] for answer in refused} == {"3"}
        assert refused[0].json()["error"]["type"] == "overloaded_error"
        assert work.started == 3
        for path in ("/health", "/metrics"):
            assert (await client.get(path)).status_code == 200
        work.go.set()
        assert {answer.status_code for answer in await asyncio.gather(*slow)} == {200}
        again = await asyncio.gather(*(client.get("/slow") for _ in range(3)))
        assert {answer.status_code for answer in again} == {200}

    work = Work(3)
    ask(work, one)


def test_streams_of_events_have_a_room_of_their_own() -> None:
    async def one(client: httpx.AsyncClient, work: Work) -> None:
        events = "/v1/jobs/one/events"
        async with client.stream("GET", events) as answer:
            assert answer.status_code == 200
            await work.until(1)
            assert (await client.get(events)).status_code == 503
            slow = asyncio.create_task(client.get("/slow"))
            await work.until(2)
            assert (await client.get("/slow")).status_code == 503
            work.go.set()
            assert (await slow).status_code == 200
        assert (await client.get(events)).status_code == 200

    work = Work(1)
    ask(work, one)


def test_who_stops_waits_for_what_is_in_work_and_lets_no_more_in() -> None:
    async def one(client: httpx.AsyncClient, work: Work) -> None:
        slow = asyncio.create_task(client.get("/slow"))
        streamed = asyncio.create_task(client.get("/stream"))
        await work.until(2)
        assert await work.drain(0.1) == 2
        refused = await client.get("/slow")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "3")
        assert (await client.get("/v1/jobs/one/events")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        drained = asyncio.create_task(work.drain(20))
        await asyncio.sleep(0.2)
        assert not drained.done()
        work.go.set()
        assert await drained == 0
        assert (await slow).status_code == 200
        assert (await streamed).text == "first second"
        assert await work.drain(20) == 0

    work = Work(3)
    ask(work, one)


def test_who_stops_ends_streams_of_events() -> None:
    """They last as long as the job; their end is a whole one, so that a client asks again."""

    async def one(client: httpx.AsyncClient, work: Work) -> None:
        streamed = asyncio.create_task(client.get("/v1/jobs/one/events"))
        await work.until(1)
        assert await work.drain(20) == 0
        assert ((await streamed).status_code, (await streamed).text) == (200, "first ")
        await work.until(1, 1)

    work = Work(3)
    ask(work, one)


def test_who_fails_or_leaves_makes_room() -> None:
    async def one(client: httpx.AsyncClient, work: Work) -> None:
        for _ in range(5):
            # A web server closes the connection after an error that nobody caught.
            answer = await client.get("/fails", headers={"Connection": "close"})
            assert answer.status_code == 500
        for left in (1, 2):
            async with client.stream("GET", "/stream") as answer:
                assert answer.status_code == 200
                await work.until(left, left - 1)
                assert (await client.get("/slow")).status_code == 503
            # Left before its end.
            await work.until(left, left)
        work.go.set()
        assert (await client.get("/stream")).text == "first second"

    work = Work(1)
    ask(work, one)


def test_who_is_cancelled_makes_room() -> None:
    """As Serve does when a client leaves or time is up."""

    async def one() -> None:
        async def waits(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.Event().wait()

        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        room = Room(waits, limit=1, event_streams=1, retry_after_s=1, in_work=InWork())
        scope = {"type": "http", "path": "/v1/score", "headers": []}
        for _ in range(3):
            task = asyncio.create_task(room(scope, receive, send))
            await asyncio.sleep(0)
            assert not task.done()
            await room(scope, receive, send)
            assert sent.pop(0)["status"] == 503
            sent.clear()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(one())


def test_streams_pass_through_piece_by_piece() -> None:
    async def one(url: str, work: Work) -> None:
        async with (
            httpx.AsyncClient(base_url=url, timeout=20) as client,
            client.stream("GET", "/stream") as answer,
        ):
            pieces = answer.aiter_bytes()
            # The second is not made before the first has come.
            assert await anext(pieces) == b"first "
            assert not work.go.is_set()
            work.go.set()
            assert await anext(pieces) == b"second"

    work = Work(8)
    work.app.add_middleware(BodyLimit, limit=LIMIT, timeout_s=PATIENCE_S)
    with listening(work.app) as url:
        asyncio.run(one(url, work))
