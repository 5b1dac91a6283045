"""What a run tells the person who waits for it, on stderr."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Where stderr is a file or a pipe, a line this often.
_PLAIN_LINE_EVERY_S = 10.0


class Advance(Protocol):
    """Reports work done."""

    def __call__(self, amount: int = 1, numbers: Mapping[str, float] | None = None) -> None:
        """`amount` more units are done; `numbers` are shown until others come."""
        ...


def announce(text: str) -> None:
    """One line on stderr, at once; it is not read as markup."""
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def stage_progress(name: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show how far a stage has come: bar, elapsed time, time to go, a few numbers.

    Where stderr is not a terminal it prints a plain line every ten seconds or so.

    Args:
        name: the stage.
        total: units of work, such as steps.
        done: units that an earlier process did.
    """
    console = _console()
    show = _bar if console.is_terminal else _plain_lines
    with show(console, name, total, done) as advance:
        yield advance


@contextmanager
def _bar(console: Console, name: str, total: int, done: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
    )
    with _shown_together(lambda: Progress(*columns, console=console)) as progress:
        task = progress.add_task(name, total=total, completed=done, numbers="")

        def advance(amount: int = 1, numbers: Mapping[str, float] | None = None) -> None:
            progress.advance(task, amount)
            if numbers is not None:
                progress.update(task, numbers=_as_text(numbers))

        yield advance


_shown: list[Progress] = []
"""The display that is there, once for each stage that shows a bar in it: a terminal has room for
one, and stages that run side by side have their bars under one another."""
_showing = threading.Lock()


@contextmanager
def _shown_together(make: Callable[[], Progress]) -> Iterator[Progress]:
    with _showing:
        progress = _shown[0] if _shown else make()
        if not _shown:
            progress.start()
        _shown.append(progress)
    try:
        yield progress
    finally:
        with _showing:
            _shown.pop()
            if not _shown:
                progress.stop()


@contextmanager
def _plain_lines(console: Console, name: str, total: int, done: int) -> Iterator[Advance]:
    started = last_line = time.monotonic()
    completed = done
    shown = ""

    def line() -> None:
        elapsed = time.monotonic() - started
        text = f"{name} {completed}/{total}, {_duration(elapsed)}"
        if done < completed < total:
            to_go = elapsed / (completed - done) * (total - completed)
            text += f", eta {_duration(to_go)}"
        text += f", {shown}" if shown else ""
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(amount: int = 1, numbers: Mapping[str, float] | None = None) -> None:
        nonlocal completed, last_line, shown
        completed += amount
        if numbers is not None:
            shown = _as_text(numbers)
        if time.monotonic() - last_line >= _PLAIN_LINE_EVERY_S:
            last_line = time.monotonic()
            line()

    line()
    try:
        yield advance
    finally:
        line()


def _console() -> Console:
    return Console(file=sys.stderr)


def _as_text(numbers: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
