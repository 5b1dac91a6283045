"""The service's numbers as Ray metrics, for Prometheus.

Each is written by the process that knows it, and Ray's agent of that process's node shows them all
at its metrics port under the prefix `ray_`; `GET /metrics` passes on those of the gateway's node.
"""

import asyncio
import time
from collections.abc import Iterable
from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayward.cluster.types import Axis

_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0]
_COUNTS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
_TOKENS = [16.0, 64.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 65536.0]
_PROBABILITIES = [0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]
# Of a request that fits no route: its path is the client's own text.
_NO_ROUTE = "none"
_LEFT = 499  # as nginx and Serve say of a client that left before its answer


def observe_scores(axis: Axis, probabilities: Iterable[float]) -> None:
    """Put the probabilities that a reward model gave into its histogram."""
    scores = _scores()
    for probability in probabilities:
        scores.observe(float(probability), tags={"model": axis})


def observe_batch(axis: Axis, items: int, tokens: int) -> None:
    """A reward model scored a batch of `items` items with `tokens` tokens in all."""
    _batch_items().observe(int(items), tags={"model": axis})
    _batch_tokens().observe(int(tokens), tags={"model": axis})


def set_queue(axis: Axis, items: int) -> None:
    """So many items wait at a replica of a reward model."""
    _queue().set(int(items), tags={"model": axis})


def count_gate(under: int, total: int) -> None:
    """Of `total` scored answers `under` were under the safety gate."""
    _add(_gated(), total)
    _add(_under_gate(), under)


def count_guard(refused: int, total: int) -> None:
    """Of `total` guarded answers `refused` were replaced by the refusal."""
    _add(_guarded(), total)
    _add(_refused(), refused)


def count_access_refused(status: int) -> None:
    """A request was not let in, with 401, 403 or 429."""
    _access_refused().inc(1, tags={"status": str(status)})


def count_from_zero(gate: bool, guard: bool) -> None:
    """Show what has not happened yet as 0: a ratio over nothing would show nothing, and a rate
    misses a first time that comes out of nowhere.

    Args:
        gate: whether answers are held against the safety gate.
        guard: whether they are guarded.
    """
    for status in (401, 403, 429):
        _add(_access_refused(), 0, {"status": str(status)})
    if gate:
        count_gate(0, 0)
    if guard:
        count_guard(0, 0)


class Measured:
    """ASGI middleware that counts and times requests by the route's template and the status.

    A request that ends without an answer, because the client left, counts with status 499; the
    time of a streamed answer runs until its end.

    Args:
        app: the rest of the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _LEFT
        start = time.perf_counter()

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        except BaseException as error:
            if status == _LEFT and not isinstance(error, asyncio.CancelledError):
                status = 500  # what is answered further out
            raise
        finally:
            # The router leaves the route that it chose in the scope.
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            tags = {"route": route, "status": str(status)}
            _requests().inc(1, tags=tags)
            _seconds().observe(time.perf_counter() - start, tags={"route": route})


def _add(counter: Counter, number: int, tags: dict[str, str] | None = None) -> None:
    # `inc` refuses 0, without which Ray does not show a counter.
    counter._record(int(number), tags=tags)


# Ray keeps a metric for each object that is made, so each is made once in a process, and where it
# is used: a gateway then has no empty histogram of batches.


@cache
def _requests() -> Counter:
    return Counter("rayward_http_requests_total", "HTTP requests.", ("route", "status"))


@cache
def _seconds() -> Histogram:
    return Histogram(
        "rayward_http_request_seconds", "From request to end of answer.", _SECONDS, ("route",)
    )


@cache
def _access_refused() -> Counter:
    return Counter("rayward_access_refused_total", "Requests that were not let in.", ("status",))


@cache
def _scores() -> Histogram:
    return Histogram(
        "rayward_score_probability", "Probabilities by model.", _PROBABILITIES, ("model",)
    )


@cache
def _batch_items() -> Histogram:
    return Histogram("rayward_batch_items", "Items scored together.", _COUNTS, ("model",))


@cache
def _batch_tokens() -> Histogram:
    return Histogram("rayward_batch_tokens", "Tokens scored together.", _TOKENS, ("model",))


@cache
def _queue() -> Gauge:
    return Gauge("rayward_queue_items", "Items that wait at a replica.", ("model",))


@cache
def _gated() -> Counter:
    return Counter("rayward_gate_answers_total", "Answers held against the safety gate.")


@cache
def _under_gate() -> Counter:
    return Counter("rayward_gate_under_total", "Answers under the safety gate.")


@cache
def _guarded() -> Counter:
    return Counter("rayward_guard_answers_total", "Answers held against the safety floor.")


@cache
def _refused() -> Counter:
    return Counter("rayward_guard_refused_total", "Answers replaced by the refusal.")
