"""Prompts, demonstrations and preferences on disk: Parquet, checked when written and when read.

A data directory:

    DIR/prompts/{train,held_out,validation}.parquet
    DIR/prompts/seeds.parquet                           what red teaming rewrites
    DIR/demonstrations/{train,held_out}.parquet
    DIR/safety_demonstrations/{train,held_out}.parquet  safe answers to adversarial prompts
    DIR/preferences/{train,held_out}.parquet
    DIR/benchmarks/{truthfulqa,toxigen}.parquet         see rayward.cluster.records.benchmarks
    DIR/_SUCCESS                                    written last; absent while DIR is written

A file without rows is not written. No prompt of a train file is in any other split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from rayward.cluster.atomic import is_file, join, resolve, write_bytes
from rayward.cluster.errors import InputError
from rayward.cluster.records.parquet import Row, read_rows, write_rows
from rayward.cluster.types import Demonstration, Message, PreferencePair, Prompt

Split = Literal["train", "held_out", "validation", "seeds"]
TrainingSplit = Literal["train", "held_out"]
BenchmarkName = Literal["truthfulqa", "toxigen"]

SUCCESS_FILE = "_SUCCESS"

_MESSAGE = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
PROMPT_FIELDS = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("messages", pa.list_(_MESSAGE), nullable=False),
    pa.field("risk_category", pa.string()),
    pa.field("attack_vector", pa.string()),
    pa.field("adversarial", pa.bool_(), nullable=False),
    pa.field("borderline", pa.bool_(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
]
PROMPTS = pa.schema(PROMPT_FIELDS)
DEMONSTRATIONS = pa.schema([*PROMPT_FIELDS, pa.field("response", pa.string(), nullable=False)])
PREFERENCES = pa.schema(
    [
        *PROMPT_FIELDS,
        pa.field("chosen", pa.string(), nullable=False),
        pa.field("rejected", pa.string(), nullable=False),
        pa.field("axis", pa.string(), nullable=False),
        pa.field("rating", pa.string()),
        pa.field("chosen_safe", pa.bool_()),
        pa.field("rejected_safe", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class DataDirectory:
    """Where the tables of one data directory lie; `uri` is local or any pyarrow.fs URI."""

    uri: str

    def prompts(self, split: Split) -> str:
        """The path of a split's prompts."""
        return join(self.uri, "prompts", f"{split}.parquet")

    def demonstrations(self, split: TrainingSplit) -> str:
        """The path of a split's demonstrations."""
        return join(self.uri, "demonstrations", f"{split}.parquet")

    def safety_demonstrations(self, split: TrainingSplit) -> str:
        """The path of a split's safe answers to adversarial prompts."""
        return join(self.uri, "safety_demonstrations", f"{split}.parquet")

    def benchmark(self, name: BenchmarkName) -> str:
        """The path of a benchmark's questions or prompts."""
        return join(self.uri, "benchmarks", f"{name}.parquet")

    def preferences(self, split: TrainingSplit) -> str:
        """The path of a split's preference pairs."""
        return join(self.uri, "preferences", f"{split}.parquet")

    def exists(self, path: str) -> bool:
        """Whether `path`, one of this directory's, is there: a split may have no rows."""
        return is_file(path)

    def is_complete(self) -> bool:
        """Whether the last writer finished."""
        return is_file(join(self.uri, SUCCESS_FILE))

    def mark_incomplete(self) -> None:
        """Take the completion marker away: the first act of whoever writes here."""
        if self.is_complete():
            filesystem, path = resolve(join(self.uri, SUCCESS_FILE))
            filesystem.delete_file(path)

    def mark_complete(self) -> None:
        """Write the completion marker: the last act of whoever writes here."""
        write_bytes(join(self.uri, SUCCESS_FILE), b"")

    def require_complete(self) -> None:
        """Refuse to read a directory that is not there or was left half written.

        Raises:
            InputError: the completion marker is absent.
        """
        if not self.is_complete():
            raise InputError(
                "data directory",
                self.uri,
                f"a folder with the file {SUCCESS_FILE}, which `rayward import` writes last; "
                "without it the import did not finish: run it again",
            )


def write_prompts(uri: str, prompts: Sequence[Prompt]) -> None:
    """Write prompts, whose ids differ, to the Parquet file `uri`, atomically.

    Raises:
        InputError: there are no rows, or one that `read_prompts` would refuse.
    """
    write_rows(uri, [prompt_row(prompt) for prompt in prompts], PROMPTS, unique="id")


def read_prompts(uri: str) -> list[Prompt]:
    """Read prompts as `write_prompts` wrote them.

    Raises:
        InputError: the file is missing, not Parquet, empty, or a column or row is not as
            `PROMPTS` says, or two rows have one id; names the file, the column and the row.
    """
    return read_rows(uri, PROMPTS, prompt_of, unique="id")


def write_demonstrations(uri: str, demonstrations: Sequence[Demonstration]) -> None:
    """Write demonstrations to the Parquet file `uri`, atomically.

    Raises:
        InputError: there are no rows, or one that `read_demonstrations` would refuse.
    """
    rows = [{**prompt_row(row.prompt), "response": row.response} for row in demonstrations]
    write_rows(uri, rows, DEMONSTRATIONS)


def read_demonstrations(uri: str) -> list[Demonstration]:
    """Read demonstrations as `write_demonstrations` wrote them.

    Raises:
        InputError: as `read_prompts`, by the schema `DEMONSTRATIONS`.
    """
    return read_rows(
        uri, DEMONSTRATIONS, lambda row: Demonstration(prompt_of(row), row["response"])
    )


def write_preferences(uri: str, pairs: Sequence[PreferencePair]) -> None:
    """Write preference pairs to the Parquet file `uri`, atomically.

    Raises:
        InputError: there are no rows, or one that `read_preferences` would refuse.
    """
    rows = [
        {
            **prompt_row(pair.prompt),
            **{name: getattr(pair, name) for name in _own_columns(PREFERENCES)},
        }
        for pair in pairs
    ]
    write_rows(uri, rows, PREFERENCES)


def read_preferences(uri: str) -> list[PreferencePair]:
    """Read preference pairs as `write_preferences` wrote them.

    Raises:
        InputError: as `read_prompts`, by the schema `PREFERENCES`.
    """
    own = _own_columns(PREFERENCES)
    return read_rows(
        uri,
        PREFERENCES,
        lambda row: PreferencePair(prompt_of(row), **{name: row[name] for name in own}),
    )


def _own_columns(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name not in PROMPTS.names]


def prompt_row(prompt: Prompt) -> Row:
    """A prompt as the columns `PROMPT_FIELDS`."""
    row = {name: getattr(prompt, name) for name in PROMPTS.names}
    row["messages"] = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
    return row


def prompt_of(row: Row) -> Prompt:
    """The prompt of a row that has the columns `PROMPT_FIELDS`."""
    fields = {name: row[name] for name in PROMPTS.names}
    fields["messages"] = tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
    return Prompt(**fields)
