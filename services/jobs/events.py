"""What happens to a job, as events that can be taken up again wherever a client was cut off.

An event's id says all that its reader has been told: how far in metrics.jsonl, by an offset and a
checksum of the line before it, and a checksum of the last state. So nothing is kept for readers,
and ids outlive this process and the cluster.
"""

import re
import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal

from rayward.services.jobs.runs import RunFiles
from rayward.services.jobs.schemas import FINAL, MetricsEvent, ResetEvent, StateEvent

_CURSOR = re.compile(r"([0-9]{1,18})\.([0-9a-f]{8})\.([0-9a-f]{8})")
_NOTHING = 0
_MOST = 500
# Of a line that is longer, the end tells it from others.
_TAIL = 512


@dataclass(frozen=True)
class Cursor:
    """What a reader has been told."""

    offset: int = 0
    """Bytes of metrics.jsonl."""
    line: int = _NOTHING
    """Checksum of the last line before `offset`."""
    state: int = _NOTHING
    """Checksum of the last `state` event."""

    def __str__(self) -> str:
        return f"{self.offset}.{self.line:08x}.{self.state:08x}"


def parse_cursor(text: str) -> Cursor | None:
    """The cursor that an event's id holds; None where it holds none."""
    found = _CURSOR.fullmatch(text)
    if found is None:
        return None
    return Cursor(int(found[1]), int(found[2], 16), int(found[3], 16))


@dataclass(frozen=True)
class JobEvent:
    """One event."""

    cursor: Cursor
    """What a reader has been told once it has read this; its id."""
    event: Literal["state", "metrics", "reset"]
    data: StateEvent | MetricsEvent | ResetEvent


@dataclass(frozen=True)
class EventPage:
    """Events since a cursor."""

    events: list[JobEvent]
    more: bool
    """Whether others are there already."""
    final: bool
    """Whether the last event is the job's last."""


def events_since(run: RunFiles, state: StateEvent, cursor: Cursor) -> EventPage:
    """What has happened since a cursor.

    Args:
        run: the job's run.
        state: how the job stands, asked before this.
        cursor: what the reader has been told.

    Raises:
        ApiError: the metrics cannot be read.
    """
    events: list[JobEvent] = []
    is_final = state.state in FINAL
    if not is_final:
        # What comes after it happens in it; the end comes after everything.
        cursor = _tell_state(events, state, cursor)
    if not _line_is_there(run, cursor):
        # A run that goes on from a checkpoint drops the steps behind it.
        cursor = replace(cursor, offset=0, line=_NOTHING)
        events.append(JobEvent(cursor, "reset", ResetEvent()))
    for line in run.metric_lines(cursor.offset):
        if len(events) >= _MOST:
            return EventPage(events, more=True, final=False)
        row = run.metric_row(line)
        cursor = replace(cursor, offset=line.end, line=_checksum(line.data))
        events.append(JobEvent(cursor, "metrics", _metrics(row)))
    if is_final:
        _tell_state(events, state, cursor)
    return EventPage(events, more=False, final=is_final)


def _tell_state(events: list[JobEvent], state: StateEvent, cursor: Cursor) -> Cursor:
    told = replace(cursor, state=zlib.crc32(state.model_dump_json().encode()))
    if told != cursor:
        events.append(JobEvent(told, "state", state))
    return told


def _line_is_there(run: RunFiles, cursor: Cursor) -> bool:
    """Whether the metrics that a reader was told still stand."""
    if cursor.offset == 0:
        return True
    end = run.metrics_before(cursor.offset, _TAIL)
    return end.endswith(b"\n") and _checksum(end[:-1].rpartition(b"\n")[2] + b"\n") == cursor.line


def _checksum(line: bytes) -> int:
    return zlib.crc32(line[-_TAIL:])


def _metrics(row: dict[str, Any]) -> MetricsEvent:
    numbers = {name: row[name] for name in row if name not in ("stage", "step", "time")}
    return MetricsEvent(stage=row["stage"], step=row["step"], time=row["time"], metrics=numbers)
