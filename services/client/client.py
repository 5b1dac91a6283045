"""A thin client of the HTTP API, for the command line."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import httpx

_TIMEOUT_S = 120.0
# A stream of events says something every 15 seconds, be it that there is nothing new.
_STREAM_TIMEOUT_S = 60.0
_TRIES = 4
_LONGEST_WAIT_S = 10.0
_RECONNECT_AFTER_S = 1.0
_REFUSED = (503,)
# HAProxy answers 500 where what is behind it is gone, and other proxies 502 or 504.
_GONE = (500, 502, 503, 504)


class RequestFailed(Exception):
    """The service refused, or nobody answered.

    Args:
        message: one line.
        status: HTTP's; None where there was no answer.
    """

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status

    @property
    def is_callers_fault(self) -> bool:
        """Whether the same request would fail again."""
        return self.status is not None and 400 <= self.status < 500


@dataclass(frozen=True)
class Event:
    """A server-sent event."""

    kind: str
    data: dict[str, Any]


class Client:
    """Asks a service.

    A 503 is waited out, a few times, and so is a connection that cannot be had. What may have been
    heard, though no answer came, is said again only where that does nothing twice. Every method
    raises `RequestFailed`.

    Args:
        url: of the service.
        key: of whoever asks; None where the service asks for none.
    """

    def __init__(self, url: str, key: str | None) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._url = url
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S)
        except (httpx.InvalidURL, ValueError) as error:
            # A key with a line break is no header.
            raise RequestFailed(f"{url}: {error}", None) from error

    def get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        """The answer to a question."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._ask("GET", path, repeatable=True, params=given)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request that makes something once, however often it is sent."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._ask("POST", path, repeatable=True, json=body, headers=headers)

    def act(self, path: str) -> dict[str, Any]:
        """The answer to a request that is refused where it was done before."""
        return self._ask("POST", path, repeatable=False)

    def events(self, job: str) -> Iterator[Event]:
        """A job's events until it has come to its end, over as many connections as it takes."""
        last: str | None = None
        failures = 0
        while True:
            headers = {} if last is None else {"Last-Event-ID": last}
            try:
                with self._http.stream(
                    "GET", f"{job_path(job)}/events", headers=headers, timeout=_STREAM_TIMEOUT_S
                ) as response:
                    if response.status_code != 200:
                        response.read()
                        raise _failure(response)
                    # A long silence may end a connection too, as often as it likes.
                    failures = 0
                    for last, event in _events(_lines(response.iter_bytes())):  # noqa: B007
                        yield event
                # The service ends a stream behind a job's end, and when it is stopped itself.
                if self._has_ended(job):
                    return
            except httpx.TransportError as error:
                failures += 1
                if failures == _TRIES:
                    raise self._no_answer(error) from error
            except RequestFailed as failed:
                failures += 1
                if failed.status not in _GONE or failures == _TRIES:
                    raise
            time.sleep(_RECONNECT_AFTER_S)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _has_ended(self, job: str) -> bool:
        state = self.get(job_path(job))["state"]
        return state not in ("queued", "running", "cancelling")

    def _ask(
        self,
        method: str,
        path: str,
        repeatable: bool,
        **options: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        for attempt in range(1, _TRIES + 1):
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                unheard = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if attempt == _TRIES or not (unheard or repeatable):
                    raise self._no_answer(error) from error
                time.sleep(_RECONNECT_AFTER_S)
                continue
            passing = _GONE if repeatable else _REFUSED
            if response.status_code not in passing or attempt == _TRIES:
                break
            wait_s = response.headers.get("Retry-After", "1")
            time.sleep(min(float(wait_s) if wait_s.isdigit() else 1.0, _LONGEST_WAIT_S))
        if not response.is_success:
            raise _failure(response)
        return _json(response)

    def _no_answer(self, error: httpx.TransportError) -> RequestFailed:
        return RequestFailed(
            f"nothing answers at {self._url} ({error or type(error).__name__})", None
        )


def job_path(job: str) -> str:
    """Where a job is, whatever its id."""
    return f"/v1/jobs/{quote(job, safe='')}"


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """The lines of a stream of events. What else Unicode calls a line break is text there."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")


def _events(lines: Iterator[str]) -> Iterator[tuple[str | None, Event]]:
    """The events of a stream, each with the id to go on from."""
    last: str | None = None
    kind, data = "message", ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            data += value
        elif name == "id":
            last = value
        elif not line and data:
            yield last, Event(kind, json.loads(data))
            kind, data = "message", ""


def _failure(response: httpx.Response) -> RequestFailed:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"{response.url} answered {response.status_code}"
    return RequestFailed(str(message), response.status_code)


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise RequestFailed(f"{response.url}: what answers there is no Rayward", None)
    return document
