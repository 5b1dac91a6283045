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


def test_stages_side_by_side_share_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its bar until the last one ends, and the next stage gets a new display."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with (
        stage_progress("safety", total=2) as first,
        stage_progress("helpfulness", total=3) as other,
    ):
        first(2)
        other(1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "/" in line]
    assert ["safety" in lines[-2], "2/2" in lines[-2]] == [True, True]
    assert ["helpfulness" in lines[-1], "1/3" in lines[-1]] == [True, True]
    with stage_progress("ppo", total=1) as advance:
        advance()
    printed = capsys.readouterr().err
    assert "1/1" in printed
    assert "safety" not in printed
