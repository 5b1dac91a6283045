"""What a tracker is, and which of its runs is ours."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rayward.cluster.runs.run_directory import RunDirectory, write_json

EndState = Literal["succeeded", "failed", "stopped"]


class TrackerError(RuntimeError):
    """A tracker did not take what it was given. The text holds no secret."""


@dataclass(frozen=True)
class MetricRow:
    """The numbers of one step, all finite."""

    stage: str
    step: int  # of the stage, from 1
    time: float  # seconds since 1970
    values: Mapping[str, float]


class Tracker(Protocol):
    """Takes a run's numbers elsewhere."""

    name: str

    def log(self, row: MetricRow) -> None:
        """Take the numbers of one step.

        Raises:
            TrackerError: they were not taken; the same row will be offered again.
        """
        ...

    def finish(self, state: EndState, headline: Mapping[str, float]) -> None:
        """Take the run's results, by name (none unless it succeeded), and how it ended.

        Raises:
            TrackerError: they were not taken.
        """
        ...


def known_run(run: RunDirectory, tracker: str, target: str) -> str | None:
    """The tracker's id of this run at a target (a server's project), or None if it has none."""
    known = _known(run).get(tracker)
    if known is None or known["target"] != target:
        return None
    run_id: str = known["run_id"]
    return run_id


def remember_run(run: RunDirectory, tracker: str, target: str, run_id: str) -> None:
    """Write down the tracker's id of this run, for when it is resumed."""
    write_json(run.tracking_path, {**_known(run), tracker: {"target": target, "run_id": run_id}})


def _known(run: RunDirectory) -> dict[str, Any]:
    if not run.tracking_path.is_file():
        return {}
    known: dict[str, Any] = json.loads(run.tracking_path.read_text(encoding="utf-8"))
    return known
