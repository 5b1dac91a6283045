"""Public benchmarks in a data directory: Parquet, checked when written and when read.

    DIR/benchmarks/truthfulqa.parquet   Lin et al. 2022, "TruthfulQA" (arXiv 2109.07958)
    DIR/benchmarks/toxigen.parquet      Hartvigsen et al. 2022, "ToxiGen" (arXiv 2203.09509)

They are measured on as a whole and are in no split; nothing is ever trained on them. The paths
come from `rayward.cluster.records.tables.DataDirectory.benchmark`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa

from rayward.cluster.errors import InputError
from rayward.cluster.records.parquet import read_rows, write_rows

_ANSWERS = pa.list_(pa.string())
TRUTHFULQA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("best_answer", pa.string(), nullable=False),
        pa.field("correct_answers", _ANSWERS, nullable=False),
        pa.field("incorrect_answers", _ANSWERS, nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)
TOXIGEN = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("hateful", pa.bool_(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)
# How every prompt of ToxiGen ends: the model's own statement follows.
TOXIGEN_END = "\n-"


@dataclass(frozen=True)
class TruthfulQuestion:
    """One question of TruthfulQA with its reference answers, none of them blank.

    `best_answer` is one of `correct_answers`: MC1 asks whether it is more likely than each of
    `incorrect_answers`, MC2 for the probability mass on `correct_answers` among both lists. Both
    have at least one answer. As in the published data, an answer may be in a list twice, and in
    few cases in both lists. `source`, where the answers come from, may be empty.
    """

    id: str
    category: str
    question: str
    best_answer: str
    correct_answers: tuple[str, ...]
    incorrect_answers: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class ToxigenPrompt:
    """A list of statements about a group of people, for the model to go on with.

    `text` is given to the model as it stands, with no chat template: one statement a line, each
    after "- ", and at the end a line that has the "-" alone, where the model's statement follows.
    `hateful` says whether the statements are hateful or benign.
    """

    id: str
    group: str
    hateful: bool
    text: str


def write_truthfulqa(uri: str, rows: Sequence[TruthfulQuestion]) -> None:
    """Write questions, whose ids differ, to the Parquet file `uri`, atomically.

    Raises:
        InputError: there are no rows, or one that `read_truthfulqa` would refuse.
    """
    _check(uri, rows, _question_problem)
    write_rows(uri, [asdict(row) for row in rows], TRUTHFULQA, unique="id")


def read_truthfulqa(uri: str) -> list[TruthfulQuestion]:
    """Read questions as `write_truthfulqa` wrote them.

    Raises:
        InputError: the file is missing, not Parquet, empty, or a column or row is not as
            `TRUTHFULQA` and `TruthfulQuestion` say, or two rows have one id; names the file, the
            column and the row.
    """
    rows = read_rows(uri, TRUTHFULQA, _question, unique="id")
    _check(uri, rows, _question_problem)
    return rows


def write_toxigen(uri: str, rows: Sequence[ToxigenPrompt]) -> None:
    """Write prompts, whose ids differ, to the Parquet file `uri`, atomically.

    Raises:
        InputError: there are no rows, or one that `read_toxigen` would refuse.
    """
    _check(uri, rows, _toxigen_problem)
    write_rows(uri, [asdict(row) for row in rows], TOXIGEN, unique="id")


def read_toxigen(uri: str) -> list[ToxigenPrompt]:
    """Read prompts as `write_toxigen` wrote them.

    Raises:
        InputError: as `read_truthfulqa`, by `TOXIGEN` and `ToxigenPrompt`.
    """
    rows = read_rows(uri, TOXIGEN, lambda row: ToxigenPrompt(**row), unique="id")
    _check(uri, rows, _toxigen_problem)
    return rows


def _question(row: dict[str, Any]) -> TruthfulQuestion:
    lists = {name: tuple(row[name]) for name in ("correct_answers", "incorrect_answers")}
    return TruthfulQuestion(**{**row, **lists})


# A column, what was found there and what would be right; texts stay out of it, errors are logged.
_Problem = tuple[str, object, str]
_Row = TypeVar("_Row", TruthfulQuestion, ToxigenPrompt)


def _check(uri: str, rows: Sequence[_Row], problem_of: Callable[[_Row], _Problem | None]) -> None:
    for index, row in enumerate(rows):
        if problem := problem_of(row):
            column, found, expected = problem
            where = f"{uri}: column {column}, row {index} (counted from 0)"
            raise InputError(where, found, expected)


def _question_problem(row: TruthfulQuestion) -> _Problem | None:
    for column in ("category", "question", "best_answer"):
        if _blank(getattr(row, column)):
            return column, None, "a text that is not blank"
    for column in ("correct_answers", "incorrect_answers"):
        answers = getattr(row, column)
        if not answers or any(_blank(answer) for answer in answers):
            return column, None, "at least one answer, and none that is blank"
    if row.best_answer not in row.correct_answers:
        return "best_answer", "an answer that is not there", "one of the row's correct_answers"
    return None


def _toxigen_problem(row: ToxigenPrompt) -> _Problem | None:
    if _blank(row.group):
        return "group", None, "a text that is not blank"
    if not row.text.startswith("- ") or not row.text.endswith(TOXIGEN_END):
        return "text", None, "lines that begin with '- ', and last one that is '-' alone"
    return None


def _blank(text: str | None) -> bool:
    return text is None or not text.strip()
