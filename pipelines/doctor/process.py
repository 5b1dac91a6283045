"""`rayward doctor`: a check in a process of its own, with a time-out; both ends of it."""

import asyncio
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from types import FrameType, TracebackType
from typing import Any, Literal

from rayward.cluster.errors import InputError

Result = Literal["ok", "failed", "not checked"]

PARTS = frozenset({"ray", "vllm", "deepspeed"})
"""Packages that one of the checks is about, each."""

# How long a check that has run out of time may take to put things in order.
_GRACE_S = 10.0
_LOG_CHARACTERS = 20_000
# A compiler's command line has thousands.
_LINE_CHARACTERS = 300
_START = "from rayward.pipelines.doctor.process import main; main()"


class CheckFailed(Exception):
    """A check found a fault and knows what it is.

    Args:
        fault: what is wrong, as a phrase.
        remedy: what a person can do about it; None for what is said of any failure of the check.
    """

    def __init__(self, fault: str, remedy: str | None = None) -> None:
        self.fault = fault
        self.remedy = remedy
        super().__init__(fault)


class NotChecked(Exception):
    """A check cannot be made here; the text says why."""


class Ended(BaseException):
    """The check's time is over, or it was asked to end. The text says where it was."""


@dataclass(frozen=True)
class Check:
    """One check, and what is known of it before it runs."""

    name: str  # on the command line
    title: str
    function: str  # module:function; takes a Place, returns what was found, raises
    limit_s: int  # it has failed when it takes longer
    remedy: str  # where nothing better is known
    needs: tuple[str, ...] = ()  # names of checks without which this one says nothing
    parts: frozenset[str] = field(default_factory=frozenset)  # which of PARTS it is about


@dataclass(frozen=True)
class Place:
    """Where a check runs."""

    home: Path  # where the person called the doctor
    address: str | None  # of a Ray cluster; None for an embedded one


@dataclass(frozen=True)
class Told:
    """What came out of a check."""

    result: Result
    text: str  # what was found, the fault, or why it was not checked
    remedy: str | None = None
    log: str = ""  # traceback and the end of standard error, of a failure
    timed_out: bool = False
    bad_input: tuple[str, Any, str] | None = None  # of an InputError


async def run_check(check: Check, place: Place) -> Told:
    """Run a check in a process of its own; whatever it does, this returns in time."""
    order = json.dumps(
        {
            "function": check.function,
            "limit_s": check.limit_s,
            "parts": sorted(check.parts),
            "home": str(place.home),
            "address": place.address,
        }
    )
    environment = {
        # Checks run side by side.
        "OMP_NUM_THREADS": "1",
        # Where `make setup` compiles DeepSpeed's op, as in a run.
        "TORCH_EXTENSIONS_DIR": str(extensions_folder()),
        # And ninja, which loads it.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    with tempfile.TemporaryDirectory(prefix="rayward-doctor-", ignore_cleanup_errors=True) as own:
        process = await asyncio.create_subprocess_exec(
            # -P: what lies in a folder is not imported because it is the current one.
            *(sys.executable, "-P", "-c", _START, order),
            cwd=own,
            env=os.environ | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(check.limit_s + _GRACE_S):
                answer, log = await process.communicate()
        except TimeoutError:
            # It did not even notice: stuck in compiled code.
            return Told("failed", f"did not finish in {check.limit_s} s", timed_out=True)
        finally:
            if process.returncode is None:
                await _end(process)
    return _told(answer.decode(), log.decode(errors="replace"), process.returncode)


def extensions_folder() -> Path:
    """Where torch looks for compiled ops, in the checks as in a run."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a check, and let it put things in order first, such as the lock of a compilation."""
    with suppress(ProcessLookupError, TimeoutError):
        process.terminate()
        async with asyncio.timeout(_GRACE_S):
            await process.wait()
    # It leads a group of its own, with all that it started.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _told(answer: str, log: str, code: int | None) -> Told:
    log = log[-_LOG_CHARACTERS:]
    if answer:
        fields = json.loads(answer)
        return Told(**fields | {"log": fields["log"] + log})
    # It had no chance to say anything: a crash in compiled code, or the kernel's memory killer.
    how = f"ended with exit code {code}"
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return Told("failed", f"{how}; its last words: {lines[-1]}" if lines else how, log=log)


def main() -> None:
    """The process of a check: reads its order, writes one JSON object to standard output."""
    order = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Libraries print to standard output too.
    os.dup2(2, 1)

    def end(told: Told) -> None:
        answers.write(json.dumps(asdict(told), default=str))
        answers.close()
        sys.stderr.flush()
        # With everything that it started; at an orderly exit vLLM and torch can hang.
        os.killpg(0, signal.SIGKILL)

    def fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        end(_failure(error, order["limit_s"]))

    sys.excepthook = fail
    signal.signal(signal.SIGALRM, _raise_ended)
    signal.signal(signal.SIGTERM, _raise_ended)
    signal.alarm(order["limit_s"])
    for package in PARTS - set(order["parts"]):
        # Importing it fails, as where it is not installed: libraries import one another where
        # they can, and a broken one would be found in the wrong place.
        sys.modules[package] = None  # type: ignore[assignment]
    module, _, name = order["function"].partition(":")
    check: Callable[[Place], str] = getattr(importlib.import_module(module), name)
    end(Told("ok", check(Place(Path(order["home"]), order["address"]))))


def _raise_ended(signum: int, frame: FrameType | None) -> None:
    stack = [
        f"{_short(entry.filename)}, {entry.name}"
        for entry in traceback.extract_stack(frame)
        if _short(entry.filename) != entry.filename
    ]
    raise Ended(stack[-1] if stack else "")


def _short(filename: str) -> str:
    """The file's name inside the project or its package; any other file as it is."""
    _, found, rest = filename.partition("site-packages/")
    return rest if found else filename.removeprefix(f"{Path(__file__).parents[2]}/")


def _failure(error: BaseException, limit_s: int) -> Told:
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, NotChecked):
        return Told("not checked", str(error))
    if isinstance(error, CheckFailed):
        return Told("failed", error.fault, error.remedy, trace)
    for one in _chain(error):
        if isinstance(one, Ended):
            where = f"; it was in {one}" if str(one) else ""
            text = f"did not finish in {limit_s} s{where}"
            return Told("failed", text, log=trace, timed_out=True)
    bad_input = None
    if isinstance(error, InputError):
        bad_input = (error.field, error.value, error.expected)
    return Told("failed", _in_a_line(error), log=trace, bad_input=bad_input)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised from or amid."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _in_a_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = ": ".join([type(error).__name__, *lines[:1]])
    if type(error).__module__.partition(".")[0] == "ray" and lines:
        # Ray quotes the worker's traceback, which ends with the error that matters.
        text = lines[-1]
    return shorten(text, _LINE_CHARACTERS, placeholder=" ...")
