"""Which tests start Ray, an engine or a service, and a guard that catches those that do not say so.

`make test` runs files side by side in two processes, of which each has a Ray of its own.

The mark `engine` comes by itself to each test whose fixtures need `preloading`, and is written
where a test starts such a thing by other means. `make test-fast` leaves out what has it.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests import preloaded

ENGINE = "engine"
_STARTS = "preloading"
_GROUPS = "rayward_groups"
_SHARED = {"served", "benchmark_session", "both_session"}
"""Fixtures that several files share: all of them are for one process."""
_DOCTORS_ENGINES = {"vllm", "deepspeed", "weight-sync"}
_VLLM_ENGINES = {"vllm.v1.engine.core": "EngineCore", "vllm.v1.engine.core_client": "MPClient"}


def mark(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the mark to tests whose fixtures say it; put what takes long before what does not."""
    groups: dict[str, str] = {}
    marks: dict[str, set[str]] = defaultdict(set)
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if _STARTS in fixtures:
            item.add_marker(ENGINE)
        file = _file(item.nodeid)
        groups[file] = min(_SHARED & fixtures, default=groups.get(file, file))
    for item in items:
        marks[groups[_file(item.nodeid)]].update(mark.name for mark in item.iter_markers())

    def order(item: pytest.Item) -> tuple[bool, ...]:
        own = groups[_file(item.nodeid)]
        return own not in _SHARED, "slow" not in marks[own], ENGINE not in marks[own]

    items.sort(key=order)
    worker = getattr(config, "workerinput", None)
    if worker is not None and worker["workerid"] == "gw0":
        Path(worker[_GROUPS]).write_text(json.dumps(groups))


class Scheduling(LoadScopeScheduling):
    """Gives a process one group after the other: a file, or all that share a costly fixture.

    Only those who run tests know their fixtures; one of them writes the groups down.
    """

    def __init__(self, config: pytest.Config, groups: Path, log: Producer | None = None) -> None:
        super().__init__(config, log)
        # In the order of `mark`.
        config.option.loadscopereorder = False
        self._file = groups

    @staticmethod
    def tell(node: WorkerController, groups: Path) -> None:
        """Where a process is to write them."""
        node.workerinput[_GROUPS] = str(groups)

    @functools.cached_property
    def _groups(self) -> dict[str, str]:
        groups: dict[str, str] = json.loads(self._file.read_text())
        return groups

    def _split_scope(self, nodeid: str) -> str:
        return self._groups[_file(nodeid)]


def _file(nodeid: str) -> str:
    return nodeid.split("::")[0]


class Guard(importlib.abc.MetaPathFinder):
    """Fails a test without the mark that starts what takes it, as it starts it."""

    def __init__(self) -> None:
        self._is_watching = False
        self._started: str | None = None
        self._before: set[int] = set()
        self._patch = pytest.MonkeyPatch()
        self.folder = Path(tempfile.mkdtemp(prefix="rw"))
        self._ray_folder = self.folder / "ray"
        self._ray_folder.mkdir()
        sys.addaudithook(self._hear)
        sys.meta_path.insert(0, self)

    def begin(self, item: pytest.Item) -> None:
        """Before a test's fixtures."""
        if item.get_closest_marker(ENGINE) is None:
            self._is_watching, self._started, self._before = True, None, set(_children())
            # Also the Ray of a program that the test starts leaves its folder here.
            self._patch.setenv("RAY_TMPDIR", str(self._ray_folder))

    def end(self) -> None:
        """After a test's fixtures."""
        if not self._is_watching:
            return
        self._is_watching = False
        self._patch.undo()
        for path in self._ray_folder.iterdir():
            shutil.rmtree(path)
            self._started = "Ray"
        for id_, command in _children().items():
            if id_ not in self._before:
                self._started = f"what outlives it ({command})"
        if self._started is not None:
            pytest.fail(self._fault, pytrace=False)

    def close(self) -> None:
        """It leaves nothing behind."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Of a module with an engine of vLLM's, which is changed as it is loaded."""
        if name not in _VLLM_ENGINES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            engine = getattr(module, _VLLM_ENGINES[name])
            start = engine.__init__

            def asked_first(own: object, *arguments: object, **settings: object) -> None:
                self._forbid("an engine")
                start(own, *arguments, **settings)

            engine.__init__ = asked_first

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec

    @property
    def _fault(self) -> str:
        return f"starts {self._started} without the mark `{ENGINE}`: tests/tiers.py"

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "subprocess.Popen" and self._is_watching:
            words = arguments[1]
            if isinstance(words, (list, tuple)):
                self._forbid(_started_by([os.fsdecode(word) for word in words]))

    def _forbid(self, started: str | None) -> None:
        if self._is_watching and started is not None:
            self._started = started
            pytest.fail(self._fault)


def _started_by(words: Sequence[str]) -> str | None:
    """What of all that is heavy a command starts."""
    program = Path(words[0]).name
    if program in ("gcs_server", "raylet") or (program == "ray" and "start" in words):
        return "Ray"
    if preloaded.__file__ in words:
        return "a fork of what is preloaded"
    if program == "rayward" and "doctor" in words and _DOCTORS_ENGINES & set(words):
        return "an engine"
    return None


def _children() -> dict[int, str]:
    """The commands of Python programs that this process has started and that run, by their id."""
    found: dict[int, str] = {}
    with contextlib.suppress(ChildProcessError):
        # Without children: far quicker than to look at every process of the machine.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                command = child.cmdline()
                if command and Path(command[0]).name == Path(sys.executable).name:
                    found[child.pid] = " ".join(command)
    return {id_: line for id_, line in found.items() if "multiprocessing.resource_" not in line}
