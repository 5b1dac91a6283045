"""TruthfulQA and ToxiGen, on files written by hand, and on real samples where present."""

import csv
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import rayward.pipelines.data.merge
from rayward.cluster.errors import InputError
from rayward.cluster.records.benchmarks import (
    ToxigenPrompt,
    TruthfulQuestion,
    read_toxigen,
    read_truthfulqa,
)
from rayward.cluster.records.tables import BenchmarkName, DataDirectory, write_prompts
from rayward.cluster.types import Message, Prompt
from rayward.pipelines.data.import_benchmarks import BenchmarkReport, import_benchmark
from rayward.pipelines.data.import_data import app, import_data
from rayward.pipelines.data.rows import RowSkipped
from rayward.pipelines.data.truthfulqa import read_truthfulqa_csv

REAL_DATA = Path(os.environ.get("RAYWARD_REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))

NAMES = [
    "Type",
    "Category",
    "Question",
    "Best Answer",
    "Correct Answers",
    "Incorrect Answers",
    "Source",
]


def cells(**changes: str) -> list[str]:
    row = {
        "Type": "Adversarial",
        "Category": "Law",
        "Question": "Why?",
        "Best Answer": "So",
        "Correct Answers": "So; Thus",
        "Incorrect Answers": "No",
        "Source": "a book",
    }
    return list(
        {**row, **{name.replace("_", " "): text for name, text in changes.items()}}.values()
    )


def write_csv(path: Path, rows: list[list[str]], names: list[str] = NAMES, bom: str = "") -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([names, *rows])
    path.write_text(bom + text.getvalue(), encoding="utf-8", newline="")
    return str(path)


def questions_of(path: str) -> list[TruthfulQuestion]:
    """What the reader makes of a file that has only usable rows."""
    rows = list(read_truthfulqa_csv(path))
    questions = [row.item for row in rows if not isinstance(row, RowSkipped)]
    assert len(questions) == len(rows)
    return questions


def check_sums(report: BenchmarkReport) -> None:
    assert report.rows_read == report.rows_kept + sum(report.skipped.values())
    assert report.rows_kept == sum(report.groups.values())


def files_of(out: str) -> dict[str, bytes]:
    root = Path(out)
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


TRUTHFULQA_ROWS: list[tuple[list[str], str]] = [
    (cells(), "kept"),
    (cells(Best_Answer="Other"), "duplicate"),  # the question decides
    (cells(Question="twice", Correct_Answers="So; So."), "kept"),
    (cells(Question="both", Incorrect_Answers="Thus; No"), "kept"),
    (cells(Question="added", Best_Answer="Because"), "kept"),
    (cells(Question="no source", Source=" "), "kept"),
    (cells(Question=" "), "empty_question"),
    (cells(Category=""), "empty_category"),
    (cells(Best_Answer=""), "empty_best_answer"),
    (cells(Correct_Answers=""), "empty_correct_answers"),
    (cells(Correct_Answers=" ; ;"), "empty_correct_answers"),
    (cells(Incorrect_Answers=" "), "empty_incorrect_answers"),
    (cells(Incorrect_Answers=";"), "empty_incorrect_answers"),
    (cells()[:-1], "wrong_number_of_columns"),
    ([*cells(), "more"], "wrong_number_of_columns"),
    ([], "blank_line"),
    ([" "], "blank_line"),
]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_every_reason_of_truthfulqa_is_counted(tmp_path: Path, bom: str) -> None:
    source = write_csv(tmp_path / "t.csv", [row for row, _ in TRUTHFULQA_ROWS], bom=bom)
    out = str(tmp_path / "out")
    report = import_benchmark("truthfulqa", source, out)
    outcomes = Counter(outcome for _, outcome in TRUTHFULQA_ROWS)
    assert report.rows_kept == outcomes.pop("kept") == 5
    assert report.skipped == outcomes
    check_sums(report)
    assert report.noted == {
        "answer_correct_and_incorrect": 1,
        "answer_twice_in_a_list": 1,
        "best_answer_added_to_correct": 1,
        "source_not_given": 1,
    }
    assert report.columns_ignored == {"Type": 5}
    assert report.groups == {"Law": 5}
    questions = {
        row.question: row for row in read_truthfulqa(DataDirectory(out).benchmark("truthfulqa"))
    }
    assert list(questions) == ["Why?", "twice", "both", "added", "no source"]
    assert questions["twice"].correct_answers == ("So.", "So.")
    assert questions["added"].correct_answers == ("Because.", "So.", "Thus.")


def test_a_question_arrives_whole(tmp_path: Path) -> None:
    row = cells(
        Question=' What is "it", then,\nin two lines? ',
        Best_Answer="It is; no, not cut here",
        Correct_Answers=" It is; no, not cut here.;Yes. ; He said “go!” ;; ",
        Incorrect_Answers='Nothing, "or"\nmore?',
    )
    names = [*NAMES[:4], "Best Incorrect Answer", *NAMES[4:]]
    source = write_csv(tmp_path / "t.csv", [[*row[:4], "No", *row[4:]]], names)
    out = str(tmp_path / "out")
    report = import_benchmark("truthfulqa", source, out)
    assert report.columns_ignored == {"Best Incorrect Answer": 1, "Type": 1}
    [question] = read_truthfulqa(DataDirectory(out).benchmark("truthfulqa"))
    assert question == TruthfulQuestion(
        id=question.id,
        category="Law",
        question='What is "it", then,\nin two lines?',
        best_answer="It is; no, not cut here.",
        # As the benchmark's own code cuts and closes them, whatever an answer ends in.
        correct_answers=(
            "It is; no, not cut here.",
            "It is.",
            "no, not cut here.",
            "Yes.",
            "He said “go!”.",
        ),
        incorrect_answers=('Nothing, "or"\nmore?.',),
        source="a book",
    )


def test_an_id_is_the_questions_alone(tmp_path: Path) -> None:
    [one] = questions_of(write_csv(tmp_path / "1.csv", [cells()]))
    rows = [cells(Question="x"), cells(Source="", Question="Why? ")]
    [_, two] = questions_of(write_csv(tmp_path / "2.csv", rows))
    # sha256 of "Why?" with the quotes of JSON around it.
    assert one.id == two.id == "499f097cf704535e383997289bfd4269"


@settings(max_examples=50)
@given(
    answers=st.lists(
        st.text(st.characters(exclude_characters=";", codec="utf-8"), min_size=1).filter(
            lambda text: text.strip()
        ),
        min_size=1,
        max_size=5,
    ),
    question=st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip()),
)
def test_any_text_survives_the_csv(
    answers: list[str], question: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    joined = " ;".join(answers)
    row = cells(Question=question, Incorrect_Answers=joined)
    path = write_csv(tmp_path_factory.getbasetemp() / "any.csv", [row])
    [found] = questions_of(path)
    assert found.question == question.strip()
    assert [text.removesuffix(".") for text in found.incorrect_answers] == [
        text.strip().removesuffix(".") for text in answers
    ]


BAD_CSV: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not empty"),
    "bom": (b"\xef\xbb\xbf", "missing: Category"),
    "lacks": (b"Question,Category\nWhy?,Law\n", "missing: Best Answer, Correct Answers"),
    "twice": (",".join([*NAMES, "Type"]).encode() + b"\n", "each once"),
    "latin": (",".join(NAMES).encode() + b"\nx,L\xe9gal,a,b,c,d,e\n", "CSV in UTF-8"),
    "open": (",".join(NAMES).encode() + b'\nx,"Law,a,b,c,d,e\n', "CSV in UTF-8"),
    "useless": (",".join(NAMES).encode() + b"\n\n", r"\{'blank_line': 1\}"),
    "packed": (b"\x1f\x8b and more", "it holds gzip"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_csv_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    content, expected = BAD_CSV[name]
    source = tmp_path / f"{name}.csv"
    source.write_bytes(content)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=expected) as raised:
        import_benchmark("truthfulqa", str(source), str(out))
    assert (raised.value.field, raised.value.value) == ("source", str(source))
    assert not out.exists()


# What a line of ToxiGen becomes: its text, or why it is skipped.
TOXIGEN_LINES: list[tuple[bytes, str]] = [
    (rb"- they are kind\n- they work\n-", "- they are kind\n- they work\n-"),
    (rb"- they are kind\n- they work\n-", "duplicate"),
    (b"- with a carriage return\\n- they work\\n-\r", "- with a carriage return\n- they work\n-"),
    (rb"- no dash at the end\n- they work", "- no dash at the end\n- they work\n-"),
    (rb"- no break at the end.-", "- no break at the end.\n-"),
    (rb"- no dash after the break\n", "- no dash after the break\n-"),
    (rb"- a dash-inside - stays.- so\n- x \n-", "- a dash-inside - stays.- so\n- x \n-"),
    ("- l\u2019été \\n-".encode(), "- l\u2019été \n-"),
    (rb"- another \t backslash\n-", "- another \\t backslash\n-"),
    (b"", "blank_line"),
    (b"  ", "blank_line"),
    (rb"they are kind\n-", "not_a_list_of_statements"),
    (b"-", "not_a_list_of_statements"),
    (b"- \xff", "text_not_utf8"),
]


def test_every_reason_of_toxigen_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "hate_middle_east_1k.txt"
    lines = b"\n".join(line for line, _ in TOXIGEN_LINES)
    source.write_bytes(b"\xef\xbb\xbf" + lines + b"\n")
    out = str(tmp_path / "out")
    report = import_benchmark("toxigen", str(source), out)
    texts = [outcome for _, outcome in TOXIGEN_LINES if outcome.startswith("- ")]
    assert report.rows_kept == len(texts) == 8
    assert report.skipped == Counter(
        outcome for _, outcome in TOXIGEN_LINES if not outcome.startswith("- ")
    )
    check_sums(report)
    assert report.noted == {"backslash_kept": 1, "end_mended": 3}
    assert report.groups == {"hate_middle_east": 8}
    prompts = read_toxigen(DataDirectory(out).benchmark("toxigen"))
    assert [prompt.text for prompt in prompts] == texts
    assert {(prompt.group, prompt.hateful) for prompt in prompts} == {("middle_east", True)}


def test_a_folder_of_toxigen_is_read_file_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    (folder / "new").mkdir(parents=True)
    for name in ("neutral_women_1k.txt", "hate_women_1k.txt", "README.md", "hate_women.txt"):
        (folder / name).write_text("- the same\\n-\n")
    out = str(tmp_path / "out")
    report = import_benchmark("toxigen", str(folder), out)
    assert report.groups == {"hate_women": 1, "neutral_women": 1}
    assert report.files_ignored == ["README.md", "hate_women.txt", "new"]
    prompts = read_toxigen(DataDirectory(out).benchmark("toxigen"))
    assert [(prompt.group, prompt.hateful) for prompt in prompts] == [
        ("women", True),
        ("women", False),
    ]
    # One text in two files is two prompts: the file says whether it hates.
    assert prompts[0].id != prompts[1].id
    assert prompts[0] == ToxigenPrompt(prompts[0].id, "women", True, "- the same\n-")


def test_a_place_without_toxigen_files_is_named(tmp_path: Path) -> None:
    other = tmp_path / "hate_women.txt"
    other.write_text("- x")
    empty = tmp_path / "hate_women_1k.txt"
    for source, expected in (
        (tmp_path, r"\{hate,neutral\}_\{group\}_1k\.txt"),
        (other, r"\{hate,neutral\}_\{group\}_1k\.txt"),
        (tmp_path / "nothing", r"\{hate,neutral\}_\{group\}_1k\.txt"),
        (empty, "not empty"),
    ):
        if source == empty:
            empty.write_bytes(b"")
        with pytest.raises(InputError, match=expected) as raised:
            import_benchmark("toxigen", str(source), str(tmp_path / "out"))
        assert raised.value.field == "source"
        assert not (tmp_path / "out").exists()


def sources(folder: Path) -> dict[BenchmarkName, str]:
    """One question, and two prompts."""
    prompts = folder / "neutral_women_1k.txt"
    prompts.write_text("- one\\n-\n- two\\n-\n")
    return {"truthfulqa": write_csv(folder / "t.csv", [cells()]), "toxigen": str(prompts)}


def pairs_file(folder: Path, count: int = 40) -> str:
    path = folder / "pairs.jsonl"
    rows = [{"prompt": f"{n}", "chosen": "good", "rejected": "bad"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_directory_may_hold_benchmarks_alone_and_rows_join_later(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for name, source in sources(tmp_path).items():
        import_benchmark(name, source, out)
        DataDirectory(out).require_complete()
    alone = files_of(out)
    assert sorted(alone) == [
        "_SUCCESS",
        "benchmarks/toxigen.parquet",
        "benchmarks/truthfulqa.parquet",
    ]
    import_data("jsonl", pairs_file(tmp_path), out, axis="safety")
    both = files_of(out)
    assert len(both) > len(alone)
    assert {name: both[name] for name in alone} == alone


def test_a_benchmark_touches_no_other_table(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    import_data("jsonl", pairs_file(tmp_path), out, axis="safety")
    before = files_of(out)
    given = sources(tmp_path)
    for name, source in given.items():
        import_benchmark(name, source, out)
    after = files_of(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2
    for name, source in given.items():
        import_benchmark(name, source, out)
    assert files_of(out) == after


def test_a_benchmark_imported_again_takes_the_old_ones_place(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    source = sources(tmp_path)["toxigen"]
    import_benchmark("toxigen", source, out)
    Path(source).write_text("- three\\n-\n")
    import_benchmark("toxigen", source, out)
    [prompt] = read_toxigen(DataDirectory(out).benchmark("toxigen"))
    assert prompt.text == "- three\n-"
    Path(source).write_text("\n")
    with pytest.raises(InputError, match="at least one usable row"):
        import_benchmark("toxigen", source, out)
    assert read_toxigen(DataDirectory(out).benchmark("toxigen")) == [prompt]


@pytest.mark.parametrize("table", ["write_prompts", "write_preferences"])
def test_a_benchmark_does_not_complete_what_another_import_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    out = str(tmp_path / "out")
    pairs = pairs_file(tmp_path)

    def dies(uri: str, rows: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rayward.pipelines.data.merge, table, dies)
        with pytest.raises(KeyboardInterrupt):
            import_data("jsonl", pairs, out, axis="safety")
    for name, source in sources(tmp_path).items():
        import_benchmark(name, source, out)
        assert not DataDirectory(out).is_complete()
    import_data("jsonl", pairs, out, axis="safety")
    DataDirectory(out).require_complete()
    assert len(read_truthfulqa(DataDirectory(out).benchmark("truthfulqa"))) == 1


def test_a_half_written_directory_of_another_origin_stays_incomplete(tmp_path: Path) -> None:
    directory = DataDirectory(str(tmp_path / "out"))
    prompt = Prompt("p", (Message("user", "x"),), None, None, False, False, "elsewhere")
    write_prompts(directory.prompts("train"), [prompt])
    import_benchmark("truthfulqa", sources(tmp_path)["truthfulqa"], directory.uri)
    assert not directory.is_complete()


def test_an_out_that_is_a_file_is_named(tmp_path: Path) -> None:
    source = sources(tmp_path)["truthfulqa"]
    for place in (source, f"{source}/below"):
        with pytest.raises(InputError) as raised:
            import_benchmark("truthfulqa", source, place)
        assert raised.value.field == "--out"


@pytest.mark.parametrize(
    "options",
    [
        ["--axis", "safety"],
        ["--seed", "0"],
        ["--held-out-share", "0.1"],
        ["--validation-share", "0.05"],
        ["--safety-demonstrations"],
    ],
)
def test_options_that_a_benchmark_has_no_use_for_are_refused(
    tmp_path: Path, options: list[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["truthfulqa", sources(tmp_path)["truthfulqa"], "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert isinstance(result.exception, InputError)
    assert result.exception.field == options[0]
    assert not out.exists()
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_the_command_prints_the_report_and_nothing_else(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "t.csv", [cells(Question="a secret"), []])
    result = CliRunner().invoke(app, ["truthfulqa", source, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    report: dict[str, Any] = json.loads(result.stdout)
    assert (report["rows_read"], report["rows_kept"]) == (2, 1)
    assert report["skipped"] == {"blank_line": 1}
    assert "secret" not in result.output


@pytest.mark.skipif(
    not (REAL_DATA / "TruthfulQA-sample.csv").exists(),
    reason=f"the TruthfulQA sample is not in {REAL_DATA} (RAYWARD_REAL_DATA names its folder)",
)
def test_the_real_sample_of_truthfulqa(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    source = REAL_DATA / "TruthfulQA-sample.csv"
    report = import_benchmark("truthfulqa", str(source), out)
    assert (report.rows_read, report.rows_kept, report.skipped) == (400, 400, {})
    assert report.noted == {
        "answer_correct_and_incorrect": 2,
        "answer_twice_in_a_list": 1,
        "source_not_given": 1,
    }
    questions = read_truthfulqa(DataDirectory(out).benchmark("truthfulqa"))
    # Nothing is lost: the characters of all answers, but for what separates and closes them.
    with source.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row.question for row in questions] == [row["Question"].strip() for row in rows]
    for row, question in zip(rows, questions, strict=True):
        for name, answers in (
            ("Correct Answers", question.correct_answers),
            ("Incorrect Answers", question.incorrect_answers),
        ):
            plain = str.maketrans("", "", "; .\t\n")
            assert "".join(answers).translate(plain) == row[name].translate(plain)


@pytest.mark.skipif(
    not (REAL_DATA / "toxigen").exists(),
    reason=f"the ToxiGen sample is not in {REAL_DATA} (RAYWARD_REAL_DATA names its folder)",
)
def test_the_real_sample_of_toxigen(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    report = import_benchmark("toxigen", str(REAL_DATA / "toxigen"), out)
    assert (report.rows_read, report.rows_kept, report.skipped) == (360, 360, {})
    assert report.noted == {}
    assert len(report.groups) == 6
    assert set(report.groups.values()) == {60}
    prompts = read_toxigen(DataDirectory(out).benchmark("toxigen"))
    # Every line of the sample has six statements.
    assert all(prompt.text.count("\n") == 6 for prompt in prompts)
    assert sum(prompt.hateful for prompt in prompts) == 180
