"""A test without the mark `engine` that starts an engine fails, and says why."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import preloaded
from tests.tiers import ENGINE, Guard

# Not watched by the guard of the whole run, which would hear first.
pytestmark = pytest.mark.engine

RAY = "import os, pathlib; pathlib.Path(os.environ['RAY_TMPDIR'], 'ray').mkdir()"
LEFT = "import time; time.sleep(60)"


class Item:
    """A test, with a mark or without."""

    def __init__(self, *marks: str) -> None:
        self._marks = marks

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self._marks else None


@pytest.fixture
def guard() -> Iterator[Guard]:
    guard = Guard()
    yield guard
    sys.meta_path.remove(guard)
    guard.close()


@pytest.mark.parametrize(
    ("command", "started"),
    [
        (["/somewhere/raylet"], "Ray"),
        (["ray", "start", "--head"], "Ray"),
        (preloaded.command("run", "demo"), "a fork of what is preloaded"),
        (["rayward", "doctor", "--only", "vllm"], "an engine"),
    ],
)
def test_it_is_stopped_as_it_starts(guard: Guard, command: list[str], started: str) -> None:
    guard.begin(Item())  # type: ignore[arg-type]
    with pytest.raises(pytest.fail.Exception, match=f"starts {started} without the mark"):
        subprocess.Popen(command)
    # Also where somebody has caught that.
    with pytest.raises(pytest.fail.Exception, match=f"starts {started} without the mark"):
        guard.end()


def test_a_ray_of_a_program_is_found_by_its_folder(guard: Guard) -> None:
    guard.begin(Item())  # type: ignore[arg-type]
    subprocess.run([sys.executable, "-c", RAY], check=True)
    with pytest.raises(pytest.fail.Exception, match="starts Ray without the mark"):
        guard.end()


def test_what_is_left_running_is_found(guard: Guard) -> None:
    guard.begin(Item())  # type: ignore[arg-type]
    with subprocess.Popen([sys.executable, "-c", LEFT]) as left:
        with pytest.raises(pytest.fail.Exception, match="starts what outlives it"):
            guard.end()
        left.kill()


def test_an_engine_asks_however_it_was_imported(guard: Guard) -> None:
    from vllm.v1.engine.core import EngineCore

    assert EngineCore.__init__.__module__ == "tests.tiers"


def test_the_mark_and_lighter_things_let_it_pass(guard: Guard) -> None:
    guard.begin(Item())  # type: ignore[arg-type]
    subprocess.run([sys.executable, "-c", ""], check=True)
    guard.end()
    guard.begin(Item(ENGINE))  # type: ignore[arg-type]
    subprocess.run([sys.executable, "-c", "", "raylet"], check=True)
    with subprocess.Popen([sys.executable, "-c", LEFT]) as left:
        guard.end()
        left.kill()
