"""`rayward doctor`: tries every part for real, tells faults apart, and says what helps."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayward.cluster.errors import InputError
from rayward.cluster.progress import announce
from rayward.pipelines.doctor.checks import ADDRESS, CHECKS, adapted
from rayward.pipelines.doctor.process import Check, Place, Result, run_check
from rayward.pipelines.doctor.remedies import explain

_STYLES: dict[Result, str] = {"ok": "green", "failed": "bold red", "not checked": "yellow"}


class Row(BaseModel):
    """One check and what came out of it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    """As `--only` takes it."""
    title: str
    result: Result
    seconds: float
    found: str
    """What was found, the fault, or why it was not checked."""
    remedy: str | None
    """What to do about a failure."""


class Diagnosis(BaseModel):
    """What `--json` prints."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    well: bool
    """Nothing failed."""
    seconds: float
    checks: list[Row]


def doctor_command(
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            envvar="RAY_ADDRESS",
            help="Of a running Ray cluster; default: an embedded Ray.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="CHECK",
            help=f"May be repeated: {', '.join(check.name for check in CHECKS)}.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Try every part for real and say what is wrong; exit code 1 if something is."""
    diagnosis = diagnose(address, only or [check.name for check in CHECKS])
    if as_json:
        typer.echo(diagnosis.model_dump_json(indent=1))
    else:
        Console().print(_table(diagnosis))
    if not diagnosis.well:
        raise typer.Exit(1)


def diagnose(address: str | None, names: Sequence[str]) -> Diagnosis:
    """Run checks, side by side where they do not need one another.

    Args:
        address: of a running cluster, or None for an embedded Ray.
        names: of the checks to run.

    Raises:
        InputError: there is no such check, or nothing answers at the address.
    """
    known = [check.name for check in CHECKS]
    for name in names:
        if name not in known:
            raise InputError("--only", name, f"one of {', '.join(known)}")
    began = time.monotonic()
    checks = [check for check in CHECKS if check.name in names]
    rows = asyncio.run(_run(checks, Place(Path.cwd(), address)))
    return Diagnosis(
        well=all(row.result != "failed" for row in rows),
        seconds=time.monotonic() - began,
        checks=rows,
    )


async def _run(checks: Sequence[Check], place: Place) -> list[Row]:
    if place.address is not None:
        told = await run_check(ADDRESS, place)
        # Any other fault is Ray's own, and named in its row.
        if told.bad_input is not None:
            raise InputError(*told.bad_input)
    announce(f"doctor: checking {', '.join(check.title for check in checks)}")
    # A check has hardly more than one busy process.
    slots = asyncio.Semaphore(max(2, os.cpu_count() or 1))
    rows: dict[str, asyncio.Task[Row]] = {}
    async with asyncio.TaskGroup() as group:
        for check in checks:
            needs = [rows[name] for name in check.needs if name in rows]
            rows[check.name] = group.create_task(_run_one(check, place, needs, slots))
    return [task.result() for task in rows.values()]


async def _run_one(
    check: Check, place: Place, needs: Sequence[asyncio.Task[Row]], slots: asyncio.Semaphore
) -> Row:
    for need in needs:
        row = await need
        if row.result != "ok":
            how = "failed" if row.result == "failed" else "was not checked"
            return _row(check, "not checked", 0.0, f"because {row.title} {how}", None)
    async with slots:
        check = adapted(check, place)
        began = time.monotonic()
        told = await run_check(check, place)
        seconds = time.monotonic() - began
    if told.result == "failed":
        return _row(check, "failed", seconds, *explain(check, told))
    return _row(check, told.result, seconds, told.text, None)


def _row(check: Check, result: Result, seconds: float, found: str, remedy: str | None) -> Row:
    announce(f"doctor: {check.title}: {result} ({seconds:.1f} s)")
    return Row(
        name=check.name,
        title=check.title,
        result=result,
        seconds=round(seconds, 1),
        found=found,
        remedy=remedy,
    )


def _table(diagnosis: Diagnosis) -> Table:
    failed = sum(row.result == "failed" for row in diagnosis.checks)
    summary = f"{failed} of {len(diagnosis.checks)} failed" if failed else "all is well"
    table = Table(
        caption=f"rayward doctor: {summary}; {diagnosis.seconds:.0f} s", caption_justify="left"
    )
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("found, and what to do")
    for row in diagnosis.checks:
        remedy = "" if row.remedy is None else f"\nTo do: {row.remedy}."
        table.add_row(
            row.title,
            Text(row.result, style=_STYLES[row.result]),
            f"{row.seconds:.1f}",
            Text(row.found + remedy),
        )
    return table
