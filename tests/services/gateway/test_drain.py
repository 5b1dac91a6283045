"""Ctrl-C while requests are under way: they are answered, no other is let in, and then it ends."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import Served, serving, write_models

CHAT = "/v1/chat/completions"
# Under way for some seconds; its scores are asked for at the end.
GUARDED: dict[str, Any] = {
    "model": "policy",
    "messages": [{"role": "user", "content": "Are you there?"}],
    "n": 8,
    "max_tokens": 150,
    "guard": {"best_of": 32},
}
SCORE = {"items": [{"text": "a"}]}


@pytest.fixture
def guarded(tmp_path: Path, request: pytest.FixtureRequest, preloading: None) -> Iterator[Served]:
    """A policy, guarded by both reward models."""
    models = write_models(tmp_path / "models")
    document = {
        "reward": {
            "safety": {"path": str(models / "safety")},
            "helpfulness": {"path": str(models / "helpfulness")},
            "policy": str(models / "policy"),
        },
        "policy": {"path": str(models / "policy"), "max_choices": 256},
    }
    with serving(tmp_path, document, forked=request.param) as service:
        yield service


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [False], indirect=True, ids=["as in use"])
def test_what_is_under_way_is_finished_with_its_scores(guarded: Served) -> None:
    found: list[httpx.Response] = []

    def ask() -> None:
        found.append(httpx.post(f"{guarded.url}{CHAT}", json=GUARDED, timeout=300))

    # Measured first, so that the signal comes in the midst of it.
    began = time.monotonic()
    ask()
    whole_s = time.monotonic() - began
    asked = threading.Thread(target=ask)
    asked.start()
    time.sleep(whole_s / 4)
    guarded.process.send_signal(signal.SIGINT)
    refused = []
    while asked.is_alive() and 503 not in refused:
        refused.append(httpx.post(f"{guarded.url}/v1/score", json=SCORE, timeout=30).status_code)
    asked.join()
    # Those that came before it had heard the signal are answered, the others are not.
    assert refused[-1] == 503
    assert set(refused) <= {200, 503}
    assert [answer.status_code for answer in found] == [200, 200], found[-1].text
    assert all(choice["rayward"]["reward"] for choice in found[-1].json()["choices"])
    assert guarded.process.wait(60) == 0
    assert guarded.log.read_text().splitlines()[-2:] == [
        "draining: requests that are under way are finished; Ctrl-C again ends them",
        "stopped",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [True], indirect=True, ids=["forked"])
def test_a_second_signal_ends_what_is_under_way(guarded: Served) -> None:
    ended: list[str] = []

    def ask() -> None:
        long = {**GUARDED, "n": 1, "max_tokens": 480, "guard": {"best_of": 256}}
        try:
            ended.append(str(httpx.post(f"{guarded.url}{CHAT}", json=long, timeout=300)))
        except httpx.TransportError as error:
            ended.append(type(error).__name__)

    asked = threading.Thread(target=ask)
    asked.start()
    time.sleep(1)
    guarded.process.send_signal(signal.SIGINT)
    until = time.monotonic() + 30
    while "draining" not in guarded.log.read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(2)
    assert guarded.process.poll() is None
    assert not ended
    guarded.process.send_signal(signal.SIGINT)
    assert guarded.process.wait(60) == 0
    asked.join()
    assert guarded.log.read_text().splitlines()[-2:] == ["stopping at once", "stopped"]
