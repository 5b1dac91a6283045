"""Reading files that grow, a part at a time, wherever pyarrow.fs finds them."""

import codecs
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from rayward.services.http.errors import writable

LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""
_KINDS = {"stage": str, "step": int}
_CHUNK = 256 * 1024


@dataclass(frozen=True)
class Line:
    """A whole line of a file, with its line break, and where it ends in bytes."""

    data: bytes
    end: int


def size_of(filesystem: fs.FileSystem, path: str) -> int | None:
    """The size of a file in bytes; None where there is none."""
    info = filesystem.get_file_info(path)
    return int(info.size) if info.type == fs.FileType.File else None


def read_if_there(filesystem: fs.FileSystem, path: str) -> bytes | None:
    """A file's content; None where there is no file."""
    try:
        with filesystem.open_input_file(path) as file:
            return bytes(file.read())
    except FileNotFoundError:
        return None


def read_part(filesystem: fs.FileSystem, path: str, offset: int, limit: int) -> bytes:
    """At most `limit` bytes from `offset` on; none beyond the end, or where there is no file."""
    try:
        with filesystem.open_input_file(path) as file:
            left = file.size() - offset
            return bytes(file.read_at(min(left, limit), offset)) if left > 0 else b""
    except FileNotFoundError:
        return b""


def decode_part(data: bytes, is_end: bool) -> tuple[str, int]:
    """A part of a UTF-8 text.

    A character that the part ends within is left to the next part, so that the parts together
    are the text. Bytes that are no UTF-8 are replaced.

    Args:
        data: the part, of 4 bytes at least where others follow.
        is_end: nothing follows.

    Returns:
        The text, and how many bytes of the part are in it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final=is_end)
    held_back, _ = decoder.getstate()
    return text, len(data) - len(held_back)


def read_lines(filesystem: fs.FileSystem, path: str, offset: int) -> Iterator[Line]:
    """The whole lines of a file from `offset` on; within a line, from the next one on.

    What stands behind the last line break is still being written, and is left out.
    """
    # The byte before says whether a line starts at the offset.
    position = max(offset - 1, 0)
    skip, rest = offset > 0, b""
    while chunk := read_part(filesystem, path, position, _CHUNK):
        start = position - len(rest)
        *lines, rest = (rest + chunk).split(b"\n")
        position += len(chunk)
        for line in lines:
            start += len(line) + 1
            if not skip:
                yield Line(line + b"\n", start)
            skip = False


def metric_row(line: Line) -> dict[str, Any]:
    """A line of metrics.jsonl, as `rayward.cluster.trackers.metrics` writes it.

    Raises:
        ValueError: it is none.
    """
    try:
        row = json.loads(line.data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(row, dict) or not {"stage", "step", "time"} <= row.keys():
        raise ValueError("not an object with stage, step and time")
    for name, value in row.items():
        if not isinstance(value, _KINDS.get(name, int | float)):
            raise ValueError(f"{name!r} is a {type(value).__name__}")
        if not (_can_be_told(name) and _can_be_told(value)):
            raise ValueError(f"{name!r} is not finite, or not text")
    return row


def _can_be_told(value: object) -> bool:
    """Whether an answer can hold it; what somebody else wrote may have any text and number."""
    if isinstance(value, str):
        return writable(value) == value
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
