"""What context distillation tried, on disk and in numbers: outputs/STAGE/distilled.parquet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from rayward.cluster.records.parquet import Row, read_rows, write_rows
from rayward.cluster.records.rates import Rate
from rayward.cluster.records.tables import PROMPT_FIELDS, prompt_of, prompt_row
from rayward.cluster.types import Demonstration, Prompt

PrepromptKind = Literal["generic", "adjectives", "category"]


@dataclass(frozen=True)
class Preprompt:
    """A safety preprompt."""

    id: str  # says which entry of the file it is
    kind: PrepromptKind
    text: str


UNCATEGORISED = "no_category"


@dataclass(frozen=True)
class DistilledSample:
    """The policy's answer to a prompt, and its best one after a preprompt. Scores are logits."""

    prompt: Prompt
    preprompt: Preprompt
    original: str
    original_score: float
    distilled: str
    distilled_score: float
    kept: bool
    """Whether the distilled answer is learned; else the original stays as it is."""

    @property
    def demonstration(self) -> Demonstration:
        """What is learned of a kept sample: the better answer, without the preprompt."""
        return Demonstration(self.prompt, self.distilled)


class GroupGain(BaseModel):
    """What distillation made of one group of prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: Rate
    gain: float | None
    """Mean rise of the safety probability over the kept samples; None without any."""


class DistillationReport(BaseModel):
    """What was tried and what was kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int
    too_long: int
    """Prompts that do not fit the limit, by themselves or behind any of their preprompts."""
    cut: int
    """Answers after a preprompt that were cut at the longest length: never kept."""
    leaked: int
    """Answers after a preprompt that hold the preprompt: never kept."""
    empty: int
    """Answers after a preprompt without a word: never kept."""
    kept: Rate
    gain: float | None
    by_category: dict[str, GroupGain]
    by_kind: dict[str, GroupGain]
    """By the kind of preprompt."""


_FILE = "distilled.parquet"


_PREPROMPT = ("id", "kind", "text")


_TEXTS = ("original", "distilled")


_SCORES = ("original_score", "distilled_score")


_SCHEMA = pa.schema(
    [
        *PROMPT_FIELDS,
        *(pa.field(f"preprompt_{name}", pa.string(), nullable=False) for name in _PREPROMPT),
        *(pa.field(name, pa.string(), nullable=False) for name in _TEXTS),
        *(pa.field(name, pa.float64(), nullable=False) for name in _SCORES),  # logits
        pa.field("kept", pa.bool_(), nullable=False),
    ]
)


def write_distilled(directory: Path, rows: Sequence[DistilledSample]) -> None:
    """Write all samples, kept or not.

    Raises:
        InputError: there is none.
    """
    write_rows(str(directory / _FILE), [_row(one) for one in rows], _SCHEMA)


def read_distilled(directory: Path) -> list[DistilledSample]:
    """Read samples as `write_distilled` wrote them.

    Raises:
        InputError: the file is missing or not as it was written.
    """
    return read_rows(str(directory / _FILE), _SCHEMA, _sample)


def _row(sample: DistilledSample) -> Row:
    preprompt = {f"preprompt_{name}": getattr(sample.preprompt, name) for name in _PREPROMPT}
    own = {name: getattr(sample, name) for name in (*_TEXTS, *_SCORES, "kept")}
    return {**prompt_row(sample.prompt), **preprompt, **own}


def _sample(row: Row) -> DistilledSample:
    preprompt = Preprompt(**{name: row[f"preprompt_{name}"] for name in _PREPROMPT})
    own = {name: row[name] for name in (*_TEXTS, *_SCORES, "kept")}
    return DistilledSample(prompt=prompt_of(row), preprompt=preprompt, **own)
