"""The rows of a source file: JSON lines, plain or compressed, Parquet, or lines of text."""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rayward.cluster.atomic import file_info, resolve
from rayward.cluster.errors import InputError
from rayward.pipelines.data.rows import Record, RowSkipped

_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"PAR1": "Parquet"}
_UNPACK: dict[str, Callable[[IO[bytes]], object]] = {"gzip": gzip.open, "xz": lzma.open}
_BATCH_ROWS = 1024


def read_json_lines(uri: str) -> Iterator[Record | RowSkipped]:
    """Each line's object, or why the line has none; `.gz` and `.xz` are unpacked.

    Raises:
        InputError: the file is missing, empty, cut off, or not compressed as its name says.
    """
    content = {".gz": "gzip", ".xz": "xz"}.get(uri[-3:], "JSON lines")
    with open_source(uri, content) as file:
        lines = cast(IO[bytes], _UNPACK[content](file)) if content in _UNPACK else file
        first = True
        try:
            for line in lines:
                yield _record(line.removeprefix(b"\xef\xbb\xbf") if first else line)
                first = False
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise InputError("source", uri, f"a whole {content} file ({error})") from error
    if first:
        raise InputError("source", uri, "a file with at least one line")


def read_parquet(uri: str) -> Iterator[Record | RowSkipped]:
    """Each row, as a mapping of column names to values, or why the row has none.

    Raises:
        InputError: the file is missing, or not a readable Parquet file with rows.
    """
    with open_source(uri, "Parquet") as file:
        try:
            table = pq.ParquetFile(file)
            if not table.metadata.num_rows:
                raise InputError("source", uri, "a Parquet file with at least one row")
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                raise InputError("source", uri, "a Parquet file whose columns differ in name")
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                yield from _batch_rows(batch)
        except (pa.ArrowException, OSError) as error:
            raise InputError("source", uri, f"a Parquet file ({error})") from error


def read_records(uri: str) -> Iterator[Record | RowSkipped]:
    """Each row of a Parquet file, where the name ends in `.parquet`, or else of JSON lines.

    Raises:
        InputError: as `read_parquet` and `read_json_lines`.
    """
    return read_parquet(uri) if uri.endswith(".parquet") else read_json_lines(uri)


def open_source(uri: str, content: str) -> IO[bytes]:
    """The file at `uri`, to be read line by line.

    Args:
        uri: a local path or any pyarrow.fs URI.
        content: gzip, xz or Parquet, or else the name of a kind of plain text.

    Raises:
        InputError: there is no such file, it is empty, or it holds something else.
    """
    found = file_info(uri)
    if found.type != fs.FileType.File:
        what = "there is a folder" if found.type == fs.FileType.Directory else "there is nothing"
        raise InputError("source", uri, f"a file; {what}")
    if not found.size:
        raise InputError("source", uri, "a file that is not empty")
    try:
        filesystem, path = resolve(uri)
        file = filesystem.open_input_file(path)
    except OSError as error:
        raise InputError("source", uri, f"a file that can be read ({error})") from error
    start = file.read(8)
    file.seek(0)
    kinds = (kind for magic, kind in _MAGIC.items() if start.startswith(magic))
    plain = content if content not in _MAGIC.values() else "plain text"
    kind = next(kinds, plain)
    if kind != content:
        file.close()
        raise InputError(
            "source",
            uri,
            f"{content}, by its name and the format asked for; it holds {kind} "
            "(`rayward import --help` says what each format reads)",
        )
    # pyarrow's own file does not read line by line.
    return io.BufferedReader(file)


def _batch_rows(batch: pa.RecordBatch) -> list[Record | RowSkipped]:
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        # Parquet's writers need not check their strings: find the rows at fault.
        if batch.num_rows == 1:
            return [RowSkipped("text_not_utf8")]
    return [row for index in range(batch.num_rows) for row in _batch_rows(batch.slice(index, 1))]


def _record(line: bytes) -> Record | RowSkipped:
    if not line.strip():
        return RowSkipped("blank_line")
    try:
        record = json.loads(line.decode("utf-8"))
        if b"\\u" in line:
            # An escaped lone surrogate is a character that UTF-8 cannot hold.
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        return RowSkipped("text_not_utf8")
    except (ValueError, RecursionError):
        # ValueError also stands for a number of too many digits.
        return RowSkipped("malformed_json")
    return record if isinstance(record, dict) else RowSkipped("not_an_object")
