"""The benchmarks' tables, on real Parquet files."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayward.cluster.errors import InputError
from rayward.cluster.records.benchmarks import (
    TOXIGEN,
    TRUTHFULQA,
    ToxigenPrompt,
    TruthfulQuestion,
    read_toxigen,
    read_truthfulqa,
    write_toxigen,
    write_truthfulqa,
)

TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())
ANSWERS = st.lists(TEXT, min_size=1, max_size=4).map(tuple)
QUESTION = st.builds(
    lambda best, correct, **rest: TruthfulQuestion(
        best_answer=best, correct_answers=(*correct, best), **rest
    ),
    best=TEXT,
    correct=ANSWERS,
    id=TEXT,
    category=TEXT,
    question=TEXT,
    incorrect_answers=ANSWERS,
    source=st.text(max_size=20),
)
PROMPT = st.builds(
    ToxigenPrompt,
    id=TEXT,
    group=TEXT,
    hateful=st.booleans(),
    text=st.text(max_size=20).map(lambda text: f"- {text}\n-"),
)

QUESTION_ROW = TruthfulQuestion("q", "Law", "Why?", "So.", ("No.", "So."), ("Yes.",), "")
PROMPT_ROW = ToxigenPrompt("t", "women", True, "- one\n- two\n-")


@settings(max_examples=50)
@given(
    questions=st.lists(QUESTION, min_size=1, max_size=4, unique_by=lambda row: row.id),
    prompts=st.lists(PROMPT, min_size=1, max_size=4, unique_by=lambda row: row.id),
)
def test_rows_come_back_equal(
    questions: list[TruthfulQuestion],
    prompts: list[ToxigenPrompt],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_truthfulqa(str(folder / "q.parquet"), questions)
    write_toxigen(str(folder / "t.parquet"), prompts)
    assert read_truthfulqa(str(folder / "q.parquet")) == questions
    assert read_toxigen(str(folder / "t.parquet")) == prompts


BAD_QUESTIONS: list[tuple[dict[str, Any], str]] = [
    ({"category": " "}, "category"),
    ({"question": ""}, "question"),
    ({"best_answer": "\n"}, "best_answer"),
    ({"best_answer": "Yes."}, "best_answer"),
    ({"correct_answers": ()}, "correct_answers"),
    ({"correct_answers": ("So.", " ")}, "correct_answers"),
    ({"correct_answers": ("So.", None)}, "correct_answers"),
    ({"incorrect_answers": ()}, "incorrect_answers"),
    ({"id": "first"}, "id"),
]
BAD_PROMPTS: list[tuple[dict[str, Any], str]] = [
    ({"group": ""}, "group"),
    ({"text": "one\n-"}, "text"),
    ({"text": "- one\n- "}, "text"),
    ({"text": "- one\n- two"}, "text"),
    ({"id": "first"}, "id"),
]


@pytest.mark.parametrize(("changes", "column"), BAD_QUESTIONS)
def test_a_bad_question_is_named_on_write_and_on_read(
    tmp_path: Path, changes: dict[str, Any], column: str
) -> None:
    rows = [
        dataclasses.replace(QUESTION_ROW, id="first"),
        dataclasses.replace(QUESTION_ROW, **changes),
    ]
    path = tmp_path / "q.parquet"
    with pytest.raises(InputError) as raised:
        write_truthfulqa(str(path), rows)
    assert raised.value.field == f"{path}: column {column}, row 1 (counted from 0)"
    assert not path.exists()
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=TRUTHFULQA)
    pq.write_table(table, path)
    with pytest.raises(InputError) as read:
        read_truthfulqa(str(path))
    assert read.value.field == raised.value.field


@pytest.mark.parametrize(("changes", "column"), BAD_PROMPTS)
def test_a_bad_prompt_is_named_on_write_and_on_read(
    tmp_path: Path, changes: dict[str, Any], column: str
) -> None:
    rows = [
        dataclasses.replace(PROMPT_ROW, id="first"),
        dataclasses.replace(PROMPT_ROW, **changes),
    ]
    path = tmp_path / "t.parquet"
    with pytest.raises(InputError) as raised:
        write_toxigen(str(path), rows)
    assert raised.value.field == f"{path}: column {column}, row 1 (counted from 0)"
    assert not path.exists()
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=TOXIGEN)
    pq.write_table(table, path)
    with pytest.raises(InputError) as read:
        read_toxigen(str(path))
    assert read.value.field == raised.value.field


def test_texts_stay_out_of_errors(tmp_path: Path) -> None:
    secret = dataclasses.replace(PROMPT_ROW, text="a secret")
    with pytest.raises(InputError) as raised:
        write_toxigen(str(tmp_path / "t.parquet"), [secret])
    assert "secret" not in str(raised.value)


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "q.parquet")
    write_truthfulqa(path, [QUESTION_ROW])
    with pytest.raises(InputError, match="column group"):
        read_toxigen(path)
    with pytest.raises(InputError, match="at least one row"):
        write_truthfulqa(path, [])
    assert read_truthfulqa(path) == [QUESTION_ROW]
