"""The command `rayward` itself: its help, its schema, and how it ends."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
from ray.exceptions import RayTaskError

import rayward.cluster.cli
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import InputError, RunStopped

PROGRAM = Path(sys.executable).parent / "rayward"


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit code of a command line whose only command raises `error`."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(rayward.cluster.cli, "make_app", lambda: app)
    monkeypatch.setattr(sys, "argv", ["rayward"])
    with pytest.raises(SystemExit) as ended:
        rayward.cluster.cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(monkeypatch, InputError("a.b", 3, "something\nelse")) == 2
    assert capsys.readouterr() == ("", "rayward: a.b: got 3, expected something else\n")


def test_bad_input_found_by_a_worker_is_the_same_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray wraps it, with the worker's process and traceback; those are not for the person."""
    own = InputError("ppo.safety.path", "x", "a model")
    wrapped = RayTaskError("score", "Traceback (most recent call last): ...", own)
    error = wrapped.as_instanceof_cause()
    assert isinstance(error, InputError)
    assert f"pid={os.getpid()}" in str(error)
    assert ends_with(monkeypatch, error) == 2
    assert capsys.readouterr().err == "rayward: ppo.safety.path: got 'x', expected a model\n"


def test_a_stopped_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(monkeypatch, RunStopped("stopped on request")) == 130
    assert capsys.readouterr() == ("", "rayward: stopped on request; --resume goes on\n")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the person can mend is one line."""
    with pytest.raises(ZeroDivisionError):
        ends_with(monkeypatch, ZeroDivisionError())


def test_every_room_that_announces_commands_has_them_here() -> None:
    rooms = entry_points(group="rayward.commands")
    assert "pipelines" in rooms.names
    names = set(typer.main.get_command(rayward.cluster.cli.make_app()).commands)  # type: ignore[attr-defined]
    assert {"config", "demo", "run", "import"} <= names


def test_the_schema_is_json_and_nothing_else_is_printed() -> None:
    done = subprocess.run([PROGRAM, "config", "schema"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    schema = json.loads(done.stdout)
    assert schema == Recipe.model_json_schema()
    assert (schema["title"], schema["type"]) == ("Recipe", "object")
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name", "data", "model"]
    # Whole: every reference leads to a part of the same document.
    references = {part.split('"')[0] for part in done.stdout.split('"#/$defs/')[1:]}
    assert references == schema["$defs"].keys()


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["--no-such-option"], ["config", "schma"], ["config"], []]
)
def test_a_wrong_command_ends_with_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rayward", *arguments])
    with pytest.raises(SystemExit) as ended:
        rayward.cluster.cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "Usage: " in said.out + said.err
    assert "Traceback" not in said.err
