"""Metrics: one JSON object per line, and the same numbers as TensorBoard events.

    {"stage": "ppo", "step": 3, "time": 1700000000.0, "critic/rewards/mean": 0.41, ...}

`time` is in seconds since 1970. Names with a unit of time under `timing/` are in seconds.
TensorBoard sees each stage as a run of its own, TENSORBOARD/STAGE. Trackers
(`rayward.cluster.trackers.tracking`) get every line once it is in the file.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tensorboard.summary import Writer

from rayward.cluster.atomic import write_bytes
from rayward.cluster.trackers.interface import MetricRow

if TYPE_CHECKING:
    # It imports Ray, which whoever reads metrics does without.
    from rayward.cluster.trackers.tracking import Trackers

_OWN_KEYS = ("stage", "step", "time")


class MetricsWriter:
    """Appends to a run's metrics. One process writes; any number may read.

    Args:
        path: metrics.jsonl, which an earlier process may have begun.
        tensorboard: the directory of TensorBoard's events.
        trackers: whoever else gets the numbers; None for nobody.
    """

    def __init__(self, path: Path, tensorboard: Path, trackers: "Trackers | None" = None) -> None:
        self._path = path.absolute()
        self._tensorboard = tensorboard
        self._trackers = trackers
        self._events: dict[str, Writer] = {}
        self._drop_torn_line()
        self._lines = self._path.open("a", encoding="utf-8")

    def log(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Write the numbers of one step, through to the file.

        Raises:
            ValueError: a value is not finite, or a name is taken; nothing is written then.
        """
        for name, value in values.items():
            if name in _OWN_KEYS:
                raise ValueError(f"metric {name!r}: the name means something else in a line")
            if not math.isfinite(value):
                raise ValueError(f"metric {name!r} of stage {stage} at step {step} is {value}")
        numbers = {name: float(value) for name, value in values.items()}
        now = round(time.time(), 3)
        row = {"stage": stage, "step": step, "time": now, **numbers}
        self._lines.write(json.dumps(row, allow_nan=False) + "\n")
        self._lines.flush()
        self._add_events(row)
        self._events[stage].flush()
        if self._trackers is not None:
            self._trackers.log(MetricRow(stage, step, now, numbers))

    def truncate(self, stage: str, after_step: int) -> int:
        """Forget what a stage wrote after a step, because the run goes on from there.

        Trackers cannot forget: they hold those steps twice once they are written again.

        Returns:
            How many lines were dropped.
        """
        rows = read_metrics(self._path)
        kept = [row for row in rows if row["stage"] != stage or row["step"] <= after_step]
        self._lines.close()
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
        write_bytes(str(self._path), text.encode())
        self._lines = self._path.open("a", encoding="utf-8")
        self._rewrite_events(stage, kept)
        return len(rows) - len(kept)

    def close(self) -> None:
        """Close all files."""
        self._lines.close()
        for events in self._events.values():
            events.close()
        self._events.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _add_events(self, row: Mapping[str, Any]) -> None:
        stage = row["stage"]
        if stage not in self._events:
            self._events[stage] = Writer(str(self._tensorboard / stage))
        for name, value in row.items():
            if name not in _OWN_KEYS:
                self._events[stage].add_scalar(name, value, row["step"], wall_time=row["time"])

    def _rewrite_events(self, stage: str, rows: list[dict[str, Any]]) -> None:
        # An event file only grows, so the stage's are made anew from the lines that stay.
        if stage in self._events:
            self._events.pop(stage).close()
        if (self._tensorboard / stage).is_dir():
            shutil.rmtree(self._tensorboard / stage)
        for row in rows:
            if row["stage"] == stage:
                self._add_events(row)
        if stage in self._events:
            self._events[stage].flush()

    def _drop_torn_line(self) -> None:
        # A process that was killed can leave half a line; the next line must not join it.
        if self._path.is_file():
            data = self._path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                write_bytes(str(self._path), whole)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file, in order; an absent file has none.

    A last line without its newline is still being written and is left out.

    Raises:
        ValueError: a line is not a JSON object with stage and step.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or not {"stage", "step"} <= row.keys():
            raise ValueError(f"{path}, line {number}: not an object with stage and step")
        rows.append(row)
    return rows
