"""Progress where stderr is not a terminal: plain lines, not too many."""

import time

import pytest

from rayward.cluster.progress import announce, stage_progress


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with stage_progress("ppo", total=60, done=20) as advance:
        for step in range(20):
            now[0] += 3
            advance(numbers={"reward": step / 4})
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "ppo 20/60, 0:00:00",
        "ppo 24/60, 0:00:12, eta 0:01:48, reward 0.75",
        "ppo 28/60, 0:00:24, eta 0:01:36, reward 1.75",
        "ppo 32/60, 0:00:36, eta 0:01:24, reward 2.75",
        "ppo 36/60, 0:00:48, eta 0:01:12, reward 3.75",
        "ppo 40/60, 0:01:00, eta 0:01:00, reward 4.75",
        "ppo 40/60, 0:01:00, eta 0:01:00, reward 4.75",
    ]


def test_announcements_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = "wrote [bold]x[/bold] " + "long " * 60
    announce(text)
    assert capsys.readouterr().err == text + "\n"


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with stage_progress("ppo", total=2) as advance:
        advance(numbers={"reward": 1.5})
        advance()
    assert "2/2" in capsys.readouterr().err
