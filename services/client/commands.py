"""`rayward submit`, `jobs` and `score`: what the HTTP API does, from a shell.

The key is read from RAYWARD_API_KEY alone: every user of a machine can read its command lines.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rayward.cluster.config.load import load_recipe
from rayward.cluster.config.shipped import find_recipe
from rayward.cluster.errors import InputError
from rayward.cluster.options import Overlays, Overrides

if TYPE_CHECKING:
    from rayward.services.client.client import Client, Event

_REFUSED, _FAILED = 2, 1
_LOG_BYTES = 256 * 1024
_FOLLOW_EVERY_S = 1.0
_SHOWN_NUMBERS = 4
_SCORED_TOGETHER = 32
_PLAIN_WIDTH = 200

_Url = Annotated[str, typer.Option("--url", envvar="RAYWARD_URL", help="Of the service.")]
_DEFAULT_URL = "http://127.0.0.1:8000"
_Job = Annotated[str, typer.Argument(metavar="ID", help="As `rayward jobs list` shows it.")]

jobs_app = typer.Typer(help="Look at jobs, and cancel them.", no_args_is_help=True)


def submit_command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe: a YAML file, see `rayward config schema`, or the name of one that "
            "comes with Rayward."
        ),
    ],
    overlays: Overlays = None,
    overrides: Overrides = None,
    priority: Annotated[int, typer.Option(min=-1000, max=1000, help="The highest goes first.")] = 0,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    url: _Url = _DEFAULT_URL,
) -> None:
    """Have a service run a recipe, and print the job's id."""
    config = load_recipe(find_recipe(recipe), overrides, overlays).model_dump(mode="json")
    with _asking(url) as client:
        body = {"kind": "recipe", "config": config, "priority": priority}
        job = client.post("/v1/jobs", body)["id"]
        print(job, flush=True)
        if watch:
            _watch(client, job)


@jobs_app.command("list")
def list_command(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="The newest so many.")] = 50,
    url: _Url = _DEFAULT_URL,
) -> None:
    """The jobs of a service, newest first."""
    with _asking(url) as client:
        page = client.get("/v1/jobs", limit=limit, state=state)
    table = Table("id", "state", "stage", "priority", "submitted", "error")
    for job in page["jobs"]:
        table.add_row(
            *(_text(job[name]) for name in ("id", "state", "stage", "priority")),
            _text(job["submitted"])[:19],
            _text(job["error"]),
        )
    _console().print(table if page["jobs"] else "no jobs", markup=False, highlight=False)
    if page["next"] is not None:
        print(f"there are older ones: --limit shows more than {limit}", file=sys.stderr)


@jobs_app.command("watch")
def watch_command(job: _Job, url: _Url = _DEFAULT_URL) -> None:
    """Follow a job to its end; exit code 0 if it succeeded."""
    with _asking(url) as client:
        _watch(client, job)


@jobs_app.command("logs")
def logs_command(
    job: _Job,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job has ended.")] = False,
    url: _Url = _DEFAULT_URL,
) -> None:
    """What a job said."""
    offset = 0
    with _asking(url) as client:
        while True:
            page = client.get(f"{_path(job)}/logs", offset=offset, limit=_LOG_BYTES)
            sys.stdout.write(page["text"])
            sys.stdout.flush()
            moved, offset = page["next_offset"] > offset, page["next_offset"]
            if page["complete"] or not (moved or follow):
                return
            if not moved:
                time.sleep(_FOLLOW_EVERY_S)


@jobs_app.command("cancel")
def cancel_command(job: _Job, url: _Url = _DEFAULT_URL) -> None:
    """Cancel a job that waits or runs; what it has done can be resumed."""
    with _asking(url) as client:
        print(client.act(f"{_path(job)}/cancel")["state"])


@jobs_app.command("resume")
def resume_command(job: _Job, url: _Url = _DEFAULT_URL) -> None:
    """Go on with a job that failed, was cancelled or interrupted."""
    with _asking(url) as client:
        print(client.act(f"{_path(job)}/resume")["state"])


def score_command(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Whole conversations, as the chat template writes.")
    ] = None,
    file: Annotated[
        str, typer.Option(help="JSONL: an item of /v1/score on each line; - is standard input.")
    ] = "-",
    url: _Url = _DEFAULT_URL,
) -> None:
    """Score conversations; one JSON line for each, in their order."""
    items = iter([{"text": text} for text in texts]) if texts else _items(file)
    with _asking(url) as client:
        while some := list(islice(items, _SCORED_TOGETHER)):
            for result in client.post("/v1/score", {"items": some})["results"]:
                print(json.dumps(result), flush=True)


@contextmanager
def _asking(url: str) -> Iterator["Client"]:
    """A client; what the service refuses is one line, and exit code 2, other failures 1."""
    # httpx takes a while to import, which only those pay who ask.
    from rayward.services.client.client import Client, RequestFailed

    try:
        with Client(url, os.environ.get("RAYWARD_API_KEY") or None) as client:
            yield client
    except RequestFailed as failed:
        print(f"rayward: {failed}", file=sys.stderr)
        raise typer.Exit(_REFUSED if failed.is_callers_fault else _FAILED) from failed


def _path(job: str) -> str:
    from rayward.services.client.client import job_path

    return job_path(job)


def _watch(client: "Client", job: str) -> None:
    console = _console()
    state = "unknown"
    # A line that stays is printed; where there is a terminal, the newest numbers stay below.
    with console.status("waiting for news", spinner="dots") as status:
        for event in client.events(job):
            line = _line(event)
            if event.kind == "state":
                state = event.data["state"]
            if event.kind == "metrics" and console.is_terminal:
                status.update(line)
            else:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    if state != "succeeded":
        raise typer.Exit(_FAILED)


def _line(event: "Event") -> str:
    data = event.data
    if event.kind == "reset":
        return "the run goes on from an earlier step"
    if event.kind == "metrics":
        numbers = list(data["metrics"].items())[:_SHOWN_NUMBERS]
        told = "  ".join(f"{name} {value:.4g}" for name, value in numbers)
        return f"{data['stage']} step {data['step']}  {told}"
    parts = [data["state"], data["stage"] or "", f"{len(data['stages_done'])} done"]
    return "  ".join(part for part in [*parts, data["error"] or ""] if part)


def _items(file: str) -> Iterator[dict[str, Any]]:
    try:
        with sys.stdin if file == "-" else Path(file).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _item(line, f"{file}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("--file", file, f"a readable text file ({error})") from error


def _item(line: str, where: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError as error:
        # The line itself may be anybody's words.
        raise InputError(where, "a line", "JSON") from error
    if not isinstance(item, dict):
        raise InputError(where, "a line", "a JSON object")
    return item


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _console() -> Console:
    console = Console()
    # Nothing is cut off for whoever reads it by a program.
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)
