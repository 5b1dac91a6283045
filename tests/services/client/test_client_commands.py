"""`rayward submit`, `jobs` and `score` against a real service, and against none."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rayward.cluster.cli import main
from rayward.services.client import client
from rayward.services.client.client import Client, RequestFailed
from tests.services.jobs.test_job_service import SMALL
from tests.serving import Served, free_port

Said = SimpleNamespace
Rayward = Callable[..., Said]


@pytest.fixture
def rayward(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rayward:
    """Runs the command line in this process: its exit code, and what it said."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr("sys.argv", ["rayward", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Said(code=ended.value.code or 0, out=said.out, err=said.err)

    return run


@pytest.fixture
def service(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setenv("RAYWARD_URL", served.url)
    monkeypatch.setenv("RAYWARD_API_KEY", served.key("jobs:read", "jobs:write", "score"))
    return served


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def test_a_job_from_submission_to_its_end(rayward: Rayward, service: Served, recipe: Path) -> None:
    submitted = rayward("submit", recipe, "--set", "name=typed", "--priority", "7")
    assert (submitted.code, submitted.err) == (0, "")
    job = submitted.out.strip()
    assert job.startswith("typed-")
    listed = rayward("jobs", "list")
    (row,) = [line for line in listed.out.splitlines() if job in line]
    assert " 7 " in row
    assert rayward("jobs", "cancel", job).out.strip() in ("cancelled", "cancelling")
    watched = rayward("jobs", "watch", job)
    assert watched.out.splitlines()[-1].startswith("cancelled")
    assert watched.code == 1
    followed = rayward("jobs", "logs", job, "--follow")
    assert followed.code == 0
    log = service.runs_root / ".jobs" / job / "log.txt"
    assert followed.out == (log.read_bytes().decode() if log.exists() else "")
    gone = rayward("jobs", "list", "--state", "queued")
    assert job not in gone.out
    again = rayward("jobs", "cancel", job)
    assert (again.code, again.err) == (2, "rayward: the job is cancelled\n")


def test_scores_are_lines(
    rayward: Rayward, service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"<user>{n}<eos>\n<assistant>Hi" for n in range(40)]
    scored = rayward("score", *texts)
    assert scored.code == 0
    rows = [json.loads(line) for line in scored.out.splitlines()]
    assert len(rows) == 40
    assert {"safety", "helpfulness"} == rows[0]["scores"].keys()
    (tmp_path / "items.jsonl").write_text("".join(f"{json.dumps({'text': t})}\n\n" for t in texts))
    from_file = rayward("score", "--file", tmp_path / "items.jsonl")
    again = [json.loads(line) for line in from_file.out.splitlines()]
    for one, two in zip(rows, again, strict=True):
        assert one["scores"]["safety"]["logit"] == pytest.approx(
            two["scores"]["safety"]["logit"], abs=1e-5
        )
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": "a secret\n')
    refused = rayward("score", "--file", tmp_path / "bad.jsonl")
    assert refused.code == 2
    assert "line 2" in refused.err
    assert "a secret" not in refused.err


def test_who_may_not_is_told_so_in_one_line(
    rayward: Rayward, service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = rayward("jobs", "watch", "no-such-job")
    assert (refused.code, refused.err) == (2, "rayward: no job 'no-such-job'\n")
    refused = rayward("jobs", "logs", "../keys")
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    for key in ("", "rw_wrong"):
        monkeypatch.setenv("RAYWARD_API_KEY", key)
        refused = rayward("jobs", "list")
        assert refused.code == 2
        assert len(refused.err.splitlines()) == 1


def test_what_is_wrong_with_a_recipe_needs_no_service(rayward: Rayward, recipe: Path) -> None:
    refused = rayward("submit", recipe, "--set", "seed=x", "--url", "http://127.0.0.1:1")
    assert (refused.code, refused.err) == (
        2,
        "rayward: seed: got 'x', expected a valid integer\n",
    )


def test_nothing_answers(rayward: Rayward, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_RECONNECT_AFTER_S", 0.01)
    url = f"http://127.0.0.1:{free_port()}"
    for command in (
        ("submit", recipe),
        ("jobs", "list"),
        ("jobs", "watch", "x"),
        ("jobs", "logs", "x"),
        ("jobs", "cancel", "x"),
        ("score", "x"),
    ):
        failed = rayward(*command, "--url", url)
        assert failed.code == 1
        (line,) = failed.err.splitlines()
        assert line.startswith(f"rayward: nothing answers at {url}")
    for wrong in ("127.0.0.1:8000", "http://[", "ftp://somewhere"):
        failed = rayward("jobs", "list", "--url", wrong)
        assert (failed.code, len(failed.err.splitlines())) == (1, 1)
    monkeypatch.setenv("RAYWARD_API_KEY", "two\nlines")
    failed = rayward("jobs", "list", "--url", url)
    assert (failed.code, len(failed.err.splitlines())) == (1, 1)
    assert "two" not in failed.err


class _Flaky(BaseHTTPRequestHandler):
    """Cuts a stream of events off after two, and takes it up behind the last that was read."""

    asked: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        if not self.path.endswith("/events"):
            self._say("application/json", b'{"state": "running"}')
            return
        last = self.headers.get("Last-Event-ID")
        self.asked.append(last)
        start = 0 if last is None else int(last) + 1
        if len(self.asked) == 2:
            self.send_response(503)
            self.end_headers()
            return
        if len(self.asked) == 4:
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "it is\\ngone"}}')
            return
        events = [
            f'event: state\ndata: {{"n": {n}}}\nid: {n}\n\n: ping\n\n' for n in (start, start + 1)
        ]
        self._say("text/event-stream", "".join(events).encode() + b'event: state\ndata: {"n"')

    def _say(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def flaky() -> Iterator[str]:
    _Flaky.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class _Losing(BaseHTTPRequestHandler):
    """Does what it is asked, and loses the answer twice: a closed connection, a proxy's 500."""

    asked: list[tuple[str, str | None]] = []  # noqa: RUF012
    said = b"{}"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.path, self.headers.get("Idempotency-Key")))
        if len(self.asked) == 1:
            self.close_connection = True
            return
        self.send_response(500 if len(self.asked) == 2 else 201)
        self.end_headers()
        self.wfile.write(b'{"id": "one"}')

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(client, "_RECONNECT_AFTER_S", 0.01)
    _Losing.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Losing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_job_whose_answer_was_lost_is_submitted_again_under_the_same_key(losing: str) -> None:
    with Client(losing, None) as client:
        assert client.post("/v1/jobs", {"kind": "recipe"}) == {"id": "one"}
    assert len(_Losing.asked) == 3
    assert len({key for _, key in _Losing.asked}) == 1
    assert _Losing.asked[0][1]


def test_what_is_refused_the_second_time_is_asked_once(losing: str) -> None:
    """Whoever cancels would hear of a conflict, though the job was cancelled."""
    with Client(losing, None) as client:
        for expected in (None, 500):
            with pytest.raises(RequestFailed) as failed:
                client.act("/v1/jobs/one/cancel")
            assert failed.value.status == expected
        assert client.act("/v1/jobs/one/cancel") == {"id": "one"}
    assert len(_Losing.asked) == 3


def test_line_breaks_within_an_event_are_its_own(losing: str) -> None:
    error = "a\u2028b\u0085c\x0bd\x1ce"
    data = json.dumps({"state": "failed", "error": error}, ensure_ascii=False)
    _Losing.said = f"event: state\r\ndata: {data}\r\nid: 1\r\n\r\n".encode()
    assert error[1] in data
    with Client(losing, None) as client:
        event = next(client.events("one"))
    assert (event.kind, event.data["error"]) == ("state", error)


def test_events_go_on_where_the_connection_broke(
    flaky: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_RECONNECT_AFTER_S", 0.01)
    told: list[tuple[str, int]] = []
    with Client(flaky, None) as one, pytest.raises(RequestFailed) as ended:
        told.extend((event.kind, event.data["n"]) for event in one.events("x"))
    assert str(ended.value) == "it is gone"
    assert ended.value.is_callers_fault
    assert told == [("state", n) for n in range(4)]
    assert _Flaky.asked == [None, "1", "1", "3"]
