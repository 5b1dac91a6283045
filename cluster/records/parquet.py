"""Rows in Parquet files, checked when written and when read.

Columns of a name that `_ALLOWED` knows hold only what it allows, in every file.
"""

import io
from collections.abc import Callable, Collection
from typing import Any, TypeVar, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from rayward.cluster.atomic import is_file, resolve, write_bytes
from rayward.cluster.errors import InputError
from rayward.cluster.types import ATTACK_VECTORS, AXES, RATINGS, RISK_CATEGORIES, MessageRole

Row = dict[str, Any]

MESSAGE_ROLES: tuple[MessageRole, ...] = get_args(MessageRole)

_ALLOWED: dict[str, Collection[str]] = {
    "risk_category": RISK_CATEGORIES,
    "attack_vector": ATTACK_VECTORS,
    "axis": AXES,
    "rating": RATINGS,
}

_Turns = list[dict[str, str | None] | None]
_Item = TypeVar("_Item")


def write_rows(uri: str, rows: list[Row], schema: pa.Schema, unique: str | None = None) -> None:
    """Write rows to the Parquet file `uri`, atomically.

    Args:
        uri: local or any pyarrow.fs URI.
        rows: by the names of the schema's columns.
        schema: the columns, their types and whether they may be null.
        unique: a column whose values all differ.

    Raises:
        InputError: there are no rows, or one that `read_rows` would refuse.
    """
    _check_rows(uri, rows, schema, unique)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    write_bytes(uri, buffer.getvalue())


def read_rows(
    uri: str, schema: pa.Schema, build: Callable[[Row], _Item], unique: str | None = None
) -> list[_Item]:
    """Read rows as `write_rows` wrote them, and make each into what it stands for.

    Raises:
        InputError: the file is missing, not Parquet, empty, or a column or row is not as the
            schema says, or two rows share a value of `unique`; names file, column and row.
    """
    table = _read_table(uri)
    for name in schema.names:
        if name not in table.schema.names:
            raise InputError(
                f"{uri}: column {name}", None, f"a column of type {schema.field(name).type}"
            )
    for name in table.schema.names:
        if name not in schema.names or table.schema.names.count(name) > 1:
            raise InputError(
                f"{uri}: column {name}", name, f"the columns {', '.join(schema.names)}, each once"
            )
        found = table.schema.field(name).type
        if found != schema.field(name).type:
            raise InputError(
                f"{uri}: column {name}", str(found), f"the type {schema.field(name).type}"
            )
    rows = table.to_pylist()
    _check_rows(uri, rows, schema, unique)
    return [build(row) for row in rows]


def _read_table(uri: str) -> pa.Table:
    if not is_file(uri):
        raise InputError("file", uri, "a Parquet file that exists")
    filesystem, path = resolve(uri)
    try:
        with filesystem.open_input_file(path) as file:
            return pq.read_table(file)
    except pa.ArrowException as error:
        raise InputError("file", uri, f"a Parquet file ({error})") from error
    except OSError as error:
        raise InputError("file", uri, f"a Parquet file that can be read ({error})") from error


def _check_rows(uri: str, rows: list[Row], schema: pa.Schema, unique: str | None) -> None:
    if not rows:
        raise InputError(f"{uri}: rows", 0, "at least one row")
    seen: dict[str, int] = {}
    for index, row in enumerate(rows):
        for field in schema:
            problem = _problem(field, row[field.name])
            if problem:
                where = f"{uri}: column {field.name}, row {index} (counted from 0)"
                raise InputError(where, *problem)
        if unique and seen.setdefault(row[unique], index) != index:
            raise InputError(
                f"{uri}: column {unique}, row {index} (counted from 0)",
                row[unique],
                f"a value of its own, row {seen[row[unique]]} has this one",
            )


def _problem(field: pa.Field, value: object) -> tuple[object, str] | None:
    """What was found and what would be right; None where the value is as it should be.

    Message text stays out of it: errors are logged.
    """
    if value is None:
        return None if field.nullable else (None, f"a value of type {field.type}")
    allowed = _ALLOWED.get(field.name)
    if allowed is not None and value not in allowed:
        return value, f"one of {', '.join(allowed)}" + (" or null" if field.nullable else "")
    if field.name == "messages":
        return _messages_problem(cast(_Turns, value))
    return None


def _messages_problem(messages: _Turns) -> tuple[object, str] | None:
    if not messages:
        return [], "at least one message"
    for turn in messages:
        if turn is None or turn["content"] is None:
            return None, "messages with a role and a content"
        if turn["role"] not in MESSAGE_ROLES:
            return turn["role"], f"a role that is one of {', '.join(MESSAGE_ROLES)}"
    last = messages[-1]
    if last is not None and last["role"] != "user":
        return last["role"], "a last message whose role is user"
    return None
