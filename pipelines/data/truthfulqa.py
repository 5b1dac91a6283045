"""TruthfulQA.csv (Lin et al. 2022, arXiv 2109.07958): one question a row.

Columns: Type, Category, Question, Best Answer, Correct Answers, Incorrect Answers, Source, and in
newer files Best Incorrect Answer. Type and Best Incorrect Answer are not read: nothing here tells
adversarial questions from others or asks for a choice of two. The file is CSV in UTF-8, with or
without a byte order mark; quoted cells may hold commas, quotes and line breaks.

Answers are formatted as the benchmark's own code does (`split_multi_answer` and `format_best` in
its truthfulqa/utilities.py), so that MC1 and MC2 are over the same texts: lists are cut at `;`,
every answer loses outer white space, empty ones go, and one that does not end in a full stop gets
one, whatever it ends in. An answer that is in a list twice, or in both, stays, as it does there,
and is noted. There, a best answer that is not among the correct ones is an error; here it is
added as the first of them, and noted.
"""

import csv
import io
from collections.abc import Iterator

from rayward.cluster.errors import InputError
from rayward.cluster.records.benchmarks import TruthfulQuestion
from rayward.pipelines.data.files import open_source
from rayward.pipelines.data.rows import BenchmarkRow, RowSkipped, digest_id

_READ = (
    "Category",
    "Question",
    "Best Answer",
    "Correct Answers",
    "Incorrect Answers",
    "Source",
)


def read_truthfulqa_csv(uri: str) -> Iterator[BenchmarkRow[TruthfulQuestion] | RowSkipped]:
    """Each row's question, counted under its category, or why the row has none.

    Raises:
        InputError: the file is missing or empty, is not CSV in UTF-8, or lacks a column.
    """
    with io.TextIOWrapper(open_source(uri, "CSV"), encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            names = next(rows, [])
            _check_names(uri, names)
            for cells in rows:
                try:
                    yield _question(names, cells)
                except RowSkipped as reason:
                    yield reason
        except (csv.Error, UnicodeDecodeError) as error:
            where = f"after {rows.line_num} lines"
            raise InputError("source", uri, f"CSV in UTF-8 ({where}: {error})") from error


def _check_names(uri: str, names: list[str]) -> None:
    missing = [name for name in _READ if name not in names]
    if missing or len(set(names)) < len(names):
        raise InputError(
            "source",
            uri,
            "CSV whose first line names its columns, each once, "
            f"those of TruthfulQA among them; missing: {', '.join(missing) or 'none'}",
        )


def _question(names: list[str], cells: list[str]) -> BenchmarkRow[TruthfulQuestion]:
    if not any(cell.strip() for cell in cells):
        raise RowSkipped("blank_line")
    if len(cells) != len(names):
        raise RowSkipped("wrong_number_of_columns")
    row = {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
    for name in _READ:
        if name != "Source" and not row[name]:
            raise RowSkipped("empty_" + name.lower().replace(" ", "_"))
    best = _closed(row["Best Answer"])
    correct = _answers(row["Correct Answers"])
    incorrect = _answers(row["Incorrect Answers"])
    if not correct:
        raise RowSkipped("empty_correct_answers")
    if not incorrect:
        raise RowSkipped("empty_incorrect_answers")
    oddities = {
        "best_answer_added_to_correct": best not in correct,
        "answer_twice_in_a_list": any(
            len(set(answers)) < len(answers) for answers in (correct, incorrect)
        ),
        "answer_correct_and_incorrect": not set(correct).isdisjoint(incorrect),
        "source_not_given": not row["Source"],
    }
    return BenchmarkRow(
        item=TruthfulQuestion(
            id=digest_id(row["Question"]),
            category=row["Category"],
            question=row["Question"],
            best_answer=best,
            correct_answers=correct if best in correct else (best, *correct),
            incorrect_answers=incorrect,
            source=row["Source"],
        ),
        group=row["Category"],
        noted=tuple(name for name, holds in oddities.items() if holds),
        columns_ignored=tuple(name for name in names if name not in _READ),
    )


def _answers(text: str) -> tuple[str, ...]:
    return tuple(_closed(answer.strip()) for answer in text.split(";") if answer.strip())


def _closed(answer: str) -> str:
    return answer if answer.endswith(".") else answer + "."
