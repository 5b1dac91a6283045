"""The best answers that rejection sampling found, on disk: outputs/STAGE/best.parquet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rayward.cluster.errors import InputError
from rayward.cluster.records.parquet import Row, read_rows, write_rows
from rayward.cluster.records.tables import PROMPT_FIELDS, prompt_of, prompt_row
from rayward.cluster.types import Demonstration, Message, Prompt

_FILE = "best.parquet"
_SCHEMA = pa.schema(
    [
        *PROMPT_FIELDS,
        pa.field("response", pa.string(), nullable=False),
        pa.field("reward", pa.float64(), nullable=False),  # the mix's, a logit
        pa.field("round", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class BestSample:
    """The best answer to a prompt in one round of rejection sampling."""

    prompt: Prompt
    response: str
    reward: float
    """By the reward mix of the newest round that scored it."""
    round: int
    """Counted over all runs: that of the first is 1."""

    @property
    def demonstration(self) -> Demonstration:
        """What is imitated."""
        return Demonstration(self.prompt, self.response)


def write_best(directory: Path, rows: Sequence[BestSample]) -> None:
    """Write the best answers of a stage, its own and those of earlier rounds.

    Raises:
        InputError: there is none.
    """
    write_rows(str(directory / _FILE), [_row(one) for one in rows], _SCHEMA)


def read_best(place: Path) -> list[BestSample]:
    """Read the best answers that a stage left in its output directory; none from other stages.

    Raises:
        InputError: the file is not as `write_best` wrote it.
    """
    path = place / _FILE
    return read_rows(str(path), _SCHEMA, _sample) if path.is_file() else []


def find_best(given: str) -> list[BestSample]:
    """The best answers of an earlier run, named by its directory or by the file itself.

    Raises:
        InputError: there are none.
    """
    return [row for file in best_files(given) for row in read_rows(str(file), _SCHEMA, _sample)]


def best_files(given: str) -> list[Path]:
    """The files with the best answers of an earlier run, as for `find_best`.

    Raises:
        InputError: there are none.
    """
    path = Path(given)
    if path.is_file():
        return [path]
    files = sorted(path.glob(f"outputs/rejection_sampling*/{_FILE}"))
    if not files:
        raise InputError(
            "rejection_sampling.earlier",
            given,
            f"a run directory with rejection sampling, or the {_FILE} of one",
        )
    return files


def unique_demonstrations(rows: Iterable[Demonstration]) -> list[Demonstration]:
    """Each prompt and answer once, in order of their first occurrence."""
    unique: dict[tuple[tuple[Message, ...], str], Demonstration] = {}
    for row in rows:
        unique.setdefault((row.prompt.messages, row.response), row)
    return list(unique.values())


def _row(sample: BestSample) -> Row:
    return {
        **prompt_row(sample.prompt),
        "response": sample.response,
        "reward": sample.reward,
        "round": sample.round,
    }


def _sample(row: Row) -> BestSample:
    return BestSample(prompt_of(row), row["response"], row["reward"], row["round"])
