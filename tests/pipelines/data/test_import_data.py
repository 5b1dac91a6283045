"""`rayward import`, on files whose rows are counted by hand, and on real samples where present."""

import gzip
import json
import lzma
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import rayward.pipelines.data.merge
from rayward.cluster.errors import InputError
from rayward.cluster.records.tables import (
    DataDirectory,
    read_demonstrations,
    read_preferences,
    read_prompts,
    write_preferences,
    write_prompts,
)
from rayward.cluster.types import Message, Prompt
from rayward.pipelines.data.import_data import ImportReport, app, import_data
from rayward.pipelines.data.rows import split_share

REAL_DATA = Path(os.environ.get("RAYWARD_REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))


def hh(chosen: str, rejected: str, context: str = "\n\nHuman: hi") -> dict[str, str]:
    return {
        "chosen": f"{context}\n\nAssistant: {chosen}",
        "rejected": f"{context}\n\nAssistant: {rejected}",
    }


def write_lines(path: Path, rows: Iterable[object]) -> str:
    path.write_bytes(
        b"".join(
            (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
        )
    )
    return str(path)


def check_sums(report: ImportReport) -> None:
    assert report.rows_read == report.rows_kept + sum(report.skipped.values())


def files_of(out: str) -> dict[str, bytes]:
    root = Path(out)
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def check_splits(out: str) -> None:
    """Whatever a train file holds, its prompt is in no other split."""
    directory = DataDirectory(out)
    prompts = {
        split: {prompt.id for prompt in read_prompts(directory.prompts(split))}
        for split in ("train", "held_out", "validation")
        if directory.exists(directory.prompts(split))
    }
    ids = [key for split in prompts.values() for key in split]
    assert len(ids) == len(set(ids))
    train = prompts["train"]
    rest = prompts.get("held_out", set()) | prompts.get("validation", set())
    for path_of, read in (
        (directory.preferences, read_preferences),
        (directory.demonstrations, read_demonstrations),
        (directory.safety_demonstrations, read_demonstrations),
    ):
        if directory.exists(path_of("train")):
            assert {row.prompt.id for row in read(path_of("train"))} <= train
        if directory.exists(path_of("held_out")):
            assert {row.prompt.id for row in read(path_of("held_out"))} <= rest


# Every kind of row that hh-rlhf's reader meets, and what becomes of it.
HH_ROWS: list[tuple[object, str]] = [
    (hh("good", "bad"), "kept"),
    (hh("good", "worse"), "kept"),  # the prompt has a demonstration
    (hh("bad", "good"), "kept"),  # contradicts the first, and has a demonstration
    (hh("good", "bad"), "duplicate"),
    (hh("Sure.  Human: thanks", "no", "\n\nHuman: label"), "kept"),  # a role label in a turn
    ({**hh("yes", "no", "\n\nHuman: extra"), "score": 1}, "kept"),  # one column ignored
    (hh("x", "y", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"), "kept"),
    (hh("", "bad"), "empty_chosen"),
    (hh("good", "  \n"), "empty_rejected"),
    (hh("same", "same"), "identical_answers"),
    (
        {"chosen": hh("x", "y")["chosen"], "rejected": hh("x", "y", "\n\nHuman: ho")["rejected"]},
        "contexts_differ",
    ),
    (hh("x", "y", "\n\nHuman: a\n\nAssistant: b"), "roles_do_not_alternate"),
    (hh("x", "y", "\n\nHuman: a\n\nHuman: b"), "roles_do_not_alternate"),
    (hh("x", "y", "\n\nHuman:"), "empty_turn"),
    ({"chosen": "\n\nHuman: hi", "rejected": "\n\nHuman: hi"}, "last_turn_not_assistant"),
    (hh("x", "y", "Human: hi"), "does_not_start_with_human"),
    (hh("x", "y", "\n\nAssistant: hi"), "does_not_start_with_human"),
    ({"chosen": "", "rejected": ""}, "does_not_start_with_human"),
    ({"chosen": "x"}, "does_not_start_with_human"),
    ({"rejected": "x"}, "missing_chosen"),
    ({"chosen": hh("x", "y")["chosen"]}, "missing_rejected"),
    ({"chosen": None, "rejected": "x"}, "invalid_chosen"),
    ({"chosen": hh("x", "y")["chosen"], "rejected": 3}, "invalid_rejected"),
    ([1, 2], "not_an_object"),
    (b"", "blank_line"),
    (b'{"chosen": "x"', "malformed_json"),
    (b"9" * 5000, "malformed_json"),
    (b"[" * 100_000, "malformed_json"),
    (b'{"chosen": "\xff"}', "text_not_utf8"),
    (hh("lone surrogate \ud800", "bad"), "text_not_utf8"),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz"])
def test_every_reason_of_hh_rlhf_is_counted(tmp_path: Path, suffix: str) -> None:
    plain = write_lines(tmp_path / "rows.jsonl", [row for row, _ in HH_ROWS])
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.xz": lzma.compress}[suffix]
    source = tmp_path / f"rows{suffix}"
    source.write_bytes(pack(b"\xef\xbb\xbf" + Path(plain).read_bytes()))
    out = str(tmp_path / "out")
    report = import_data("hh-rlhf", str(source), out, axis="safety")
    outcomes = Counter(outcome for _, outcome in HH_ROWS)
    assert report.rows_read == 30
    assert report.rows_kept == outcomes.pop("kept") == 6
    assert report.skipped == outcomes
    assert report.noted == {
        "contradicts_another_pair": 1,
        "prompt_has_demonstration": 2,
        "role_label_inside_turn": 1,
    }
    assert report.columns_ignored == {"score": 1}
    assert sum(report.prompts.values()) == sum(report.demonstrations.values()) == 4
    assert sum(report.pairs.values()) == report.without_safety_labels == 6


def test_hh_rlhf_turns_and_tags(tmp_path: Path) -> None:
    context = "\n\nHuman: one \n\nAssistant:  two\n\nlines\n\nHuman: three"
    source = write_lines(tmp_path / "rows.jsonl", [hh("good", "bad", context)])
    out = str(tmp_path / "out")
    import_data("hh-rlhf", source, out, axis="safety", held_out_share=0, validation_share=0)
    [pair] = read_preferences(DataDirectory(out).preferences("train"))
    assert pair.prompt.messages == (
        Message("user", "one"),
        Message("assistant", "two\n\nlines"),
        Message("user", "three"),
    )
    assert (pair.chosen, pair.rejected, pair.axis) == ("good", "bad", "safety")
    assert (pair.rating, pair.chosen_safe, pair.rejected_safe) == (None, None, None)
    assert pair.prompt.adversarial
    assert pair.prompt.source == f"{tmp_path.name}/rows.jsonl"
    [demonstration] = read_demonstrations(DataDirectory(out).demonstrations("train"))
    assert (demonstration.prompt, demonstration.response) == (pair.prompt, "good")
    assert read_prompts(DataDirectory(out).prompts("train")) == [pair.prompt]


USER = [{"role": "user", "content": "hi"}]
GOOD = [{"role": "assistant", "content": "good"}]
BAD = [{"role": "assistant", "content": "bad"}]
PAIR = {"prompt": "hi", "chosen": "good", "rejected": "bad"}

GENERIC_ROWS: list[tuple[dict[str, Any], str]] = [
    (PAIR, "kept"),
    ({**PAIR, "prompt": USER, "chosen": GOOD, "rejected": BAD}, "duplicate"),
    ({"chosen": USER + GOOD, "rejected": USER + BAD}, "duplicate"),
    ({"messages": USER, "chosen": "good", "rejected": "bad"}, "duplicate"),
    ({**PAIR, "chosen": USER + GOOD, "rejected": USER + BAD}, "duplicate"),
    ({**PAIR, "axis": "safety"}, "duplicate"),
    ({**PAIR, "axis": "helpfulness"}, "other_axis"),
    ({**PAIR, "prompt": "b", "chosen_safe": False, "rejected_safe": False}, "kept"),
    ({**PAIR, "chosen_safe": False, "rejected_safe": True}, "chosen_unsafe_rejected_safe"),
    ({**PAIR, "prompt": "c", "chosen_safe": True, "rejected_safe": False}, "kept"),
    ({"messages": USER + GOOD}, "duplicate"),
    ({"messages": USER + BAD}, "kept"),  # a second answer to the prompt "hi"
    ({"prompt": "d", "completion": "yes"}, "kept"),
    ({"prompt": "d", "response": GOOD, "adversarial": False}, "kept"),
    ({"prompt": "e"}, "kept"),
    ({"prompt": "e", "id": "7"}, "duplicate"),
    ({"prompt": [{"role": "system", "content": "be kind"}, *USER], "id": "8"}, "kept"),
    ({"prompt": "f", "messages": [{"role": "user", "content": "f"}]}, "kept"),
    ({**PAIR, "rejected": None}, "missing_rejected"),
    ({**PAIR, "chosen": None}, "missing_chosen"),
    ({"chosen": "good", "rejected": "bad"}, "missing_prompt"),
    ({"response": "good"}, "missing_prompt"),
    ({"text": "hi"}, "missing_prompt"),
    ({"chosen": USER + GOOD, "rejected": [*USER, *GOOD, *USER, *BAD]}, "contexts_differ"),
    ({**PAIR, "chosen": GOOD + BAD}, "answer_not_one_assistant_turn"),
    ({**PAIR, "chosen": USER}, "answer_not_one_assistant_turn"),
    ({"prompt": "hi", "completion": "x", "response": "y"}, "response_and_completion"),
    ({"prompt": "hi", "completion": " "}, "empty_response"),
    ({**PAIR, "chosen": ""}, "empty_chosen"),
    ({**PAIR, "rejected": ""}, "empty_rejected"),
    ({**PAIR, "rejected": "good"}, "identical_answers"),
    ({"prompt": " "}, "empty_turn"),
    ({"messages": []}, "no_messages"),
    ({"messages": USER + GOOD, "response": "x"}, "last_turn_not_user"),
    ({"messages": USER + USER}, "roles_do_not_alternate"),
    ({"prompt": "g", "adversarial": True, "borderline": True}, "adversarial_and_borderline"),
    ({**PAIR, "prompt": 3}, "invalid_prompt"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_messages"),
    ({"messages": [{"role": "user"}]}, "invalid_messages"),
    ({**PAIR, "rating": "best"}, "invalid_rating"),
    ({**PAIR, "axis": "honesty"}, "invalid_axis"),
    ({**PAIR, "chosen_safe": "yes"}, "invalid_chosen_safe"),
    ({**PAIR, "chosen_safe": 1}, "invalid_chosen_safe"),
    ({"prompt": "hi", "risk_category": "piracy"}, "invalid_risk_category"),
    ({"prompt": "hi", "attack_vector": "magic"}, "invalid_attack_vector"),
]


def test_every_reason_of_generic_rows_is_counted(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [row for row, _ in GENERIC_ROWS])
    report = import_data("jsonl", source, str(tmp_path / "out"), axis="safety")
    outcomes = Counter(outcome for _, outcome in GENERIC_ROWS)
    assert report.rows_kept == outcomes.pop("kept") == 9
    assert report.skipped == outcomes
    check_sums(report)
    assert report.noted == {"unsafe_chosen_not_demonstrated": 1}
    assert report.columns_ignored == {"id": 1, "messages": 1}
    assert sum(report.pairs.values()) == 3
    assert report.without_safety_labels == 1
    # hi: good and bad; b: not shown, it is unsafe; c: good; d: yes and good.
    assert sum(report.demonstrations.values()) == 5
    # hi, b, c, d, e, the one with a system turn, f.
    assert sum(report.prompts.values()) == 7


def test_columns_of_a_generic_row_arrive(tmp_path: Path) -> None:
    row = {
        **PAIR,
        "axis": "helpfulness",
        "rating": "slightly",
        "chosen_safe": True,
        "rejected_safe": False,
        "risk_category": "unqualified_advice",
        "attack_vector": "other",
        "borderline": True,
        "source": "mine",
    }
    out = str(tmp_path / "out")
    source = write_lines(tmp_path / "rows.jsonl", [row, {"prompt": "untagged"}])
    report = import_data("jsonl", source, out, held_out_share=0, validation_share=0)
    [pair] = read_preferences(DataDirectory(out).preferences("train"))
    assert (pair.axis, pair.rating) == ("helpfulness", "slightly")
    assert (pair.chosen_safe, pair.rejected_safe) == (True, False)
    assert pair.prompt.risk_category == "unqualified_advice"
    assert pair.prompt.attack_vector == "other"
    assert (pair.prompt.adversarial, pair.prompt.borderline) == (False, True)
    assert pair.prompt.source == "mine"
    assert report.noted == {"adversarial_not_given": 1}


# What is shown of a row with --safety-demonstrations and --axis safety: the table and the answer.
SHOWN_ROWS: list[tuple[dict[str, Any], tuple[str, str] | None]] = [
    ({"prompt": "a", "response": "no"}, ("safety_demonstrations", "no")),
    ({"messages": [*USER, *GOOD]}, ("safety_demonstrations", "good")),
    ({"prompt": "b", "response": "yes", "adversarial": False}, ("demonstrations", "yes")),
    ({"prompt": "c", "chosen": "fine", "rejected": "bad"}, ("safety_demonstrations", "fine")),
    ({"prompt": "d", "chosen": "x", "rejected": "y", "chosen_safe": False}, None),
    ({"prompt": "e"}, None),
]


def shown(out: str, table: str) -> list[str]:
    path = f"{out}/{table}/train.parquet"
    return [row.response for row in read_demonstrations(path)] if Path(path).exists() else []


def test_safe_answers_to_adversarial_prompts_have_their_own_table(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [row for row, _ in SHOWN_ROWS])
    out = str(tmp_path / "out")
    shares: dict[str, Any] = {"held_out_share": 0, "validation_share": 0}
    report = import_data("jsonl", source, out, axis="safety", safety_demonstrations=True, **shares)
    for table in ("safety_demonstrations", "demonstrations"):
        assert shown(out, table) == [told[1] for _, told in SHOWN_ROWS if told and told[0] == table]
    assert report.safety_demonstrations == {"train": 3, "held_out": 0}
    assert report.demonstrations == {"train": 1, "held_out": 0}
    safe = read_demonstrations(DataDirectory(out).safety_demonstrations("train"))
    assert all(row.prompt.adversarial for row in safe)
    # Without the option they are demonstrations like all others.
    plain = str(tmp_path / "plain")
    import_data("jsonl", source, plain, axis="safety", **shares)
    assert shown(plain, "safety_demonstrations") == []
    assert shown(plain, "demonstrations") == ["no", "good", "yes", "fine"]
    # Told later that they are safe, they move; an import without the option moves none back.
    import_data("jsonl", source, plain, axis="safety", safety_demonstrations=True, **shares)
    moved = files_of(plain)
    assert shown(plain, "safety_demonstrations") == ["no", "good", "fine"]
    assert shown(plain, "demonstrations") == ["yes"]
    import_data("jsonl", source, plain, axis="safety", **shares)
    assert files_of(plain) == moved


def test_a_table_of_safe_answers_can_be_imported_again(tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "rows.jsonl", [{"prompt": f"{n}", "response": "no"} for n in range(50)]
    )
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    report = import_data("jsonl", source, first, axis="safety", safety_demonstrations=True)
    assert report.safety_demonstrations["held_out"] > 0
    assert sum(report.safety_demonstrations.values()) == 50
    check_splits(first)
    for part in ("train", "held_out"):
        table = DataDirectory(first).safety_demonstrations(part)
        import_data("parquet", table, second, safety_demonstrations=True)
    for part in ("train", "held_out"):
        assert read_demonstrations(DataDirectory(second).safety_demonstrations(part)) == (
            read_demonstrations(DataDirectory(first).safety_demonstrations(part))
        )
    assert not (Path(second) / "demonstrations").exists()


def test_a_safe_answer_given_both_ways_is_shown_once(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "response": "no", "adversarial": False},
        {"prompt": "a", "response": "no", "adversarial": True},
        {"prompt": "a", "response": "no", "adversarial": True},
        {"prompt": "a", "response": "no", "adversarial": False},
    ]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    out = str(tmp_path / "out")
    shares: dict[str, Any] = {"held_out_share": 0, "validation_share": 0}
    report = import_data("jsonl", source, out, safety_demonstrations=True, **shares)
    assert report.skipped == {"duplicate": 2}
    assert shown(out, "safety_demonstrations") == ["no"]
    assert shown(out, "demonstrations") == []


def test_a_pair_without_any_axis_is_an_error(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{"prompt": "x"}, PAIR])
    with pytest.raises(InputError, match="--axis"):
        import_data("jsonl", source, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_parquet_rows_are_read_as_json_lines_are(tmp_path: Path) -> None:
    texts = dict.fromkeys(("prompt", "chosen", "rejected", "response", "completion"), pa.string())
    turns = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    labels = dict.fromkeys(("chosen_safe", "rejected_safe", "adversarial"), pa.bool_())
    columns = {**texts, **labels, "messages": turns, "axis": pa.string(), "rating": pa.string()}
    # A column of Parquet has one type, so only rows whose texts are texts can be in one file.
    rows = [
        (row, outcome)
        for row, outcome in GENERIC_ROWS
        if row.keys() <= columns.keys()
        and all(isinstance(row.get(name, ""), str | None) for name in texts)
        and outcome != "invalid_chosen_safe"
    ]
    source = tmp_path / "rows.parquet"
    table = pa.Table.from_pylist([row for row, _ in rows], schema=pa.schema(columns))
    pq.write_table(table, source)
    lines = write_lines(tmp_path / "rows.jsonl", [row for row, _ in rows])
    reports = [
        import_data("parquet", str(source), str(tmp_path / "a"), axis="safety"),
        import_data("jsonl", lines, str(tmp_path / "b"), axis="safety"),
    ]
    outcomes = Counter(outcome for _, outcome in rows)
    assert outcomes.pop("kept") == 7
    for report in reports:
        assert report.rows_kept == 7
        assert report.skipped == outcomes
    assert reports[0].directory == reports[1].directory


def test_our_own_tables_can_be_imported_again(tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "rows.jsonl", [hh("good", "bad", f"\n\nHuman: {n}") for n in range(20)]
    )
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    shares: dict[str, Any] = {"held_out_share": 0, "validation_share": 0}
    import_data("hh-rlhf", source, first, axis="safety", **shares)
    table = DataDirectory(first).preferences("train")
    report = import_data("parquet", table, second, **shares)
    assert report.rows_kept == 20
    assert read_preferences(DataDirectory(second).preferences("train")) == read_preferences(table)


def test_a_parquet_string_that_is_not_utf8_is_counted(tmp_path: Path) -> None:
    broken = pa.array([b"one", b"\xff\xfe", b"three"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": broken}), tmp_path / "rows.parquet")
    report = import_data("parquet", str(tmp_path / "rows.parquet"), str(tmp_path / "out"))
    assert (report.rows_read, report.rows_kept) == (3, 2)
    assert report.skipped == {"text_not_utf8": 1}


def bad_sources(folder: Path) -> Mapping[str, tuple[Path, str]]:
    content = b"".join(json.dumps(hh(str(n), "bad")).encode() + b"\n" for n in range(200))
    files = {
        "empty.jsonl": (b"", "not empty"),
        "empty.jsonl.gz": (gzip.compress(b""), "at least one line"),
        "cut.jsonl.gz": (gzip.compress(content)[:-20], "a whole gzip file"),
        "cut.jsonl.xz": (lzma.compress(content)[:-20], "a whole xz file"),
        "broken.jsonl.gz": (gzip.compress(content)[:40] + bytes(200), "a whole gzip file"),
        "plain.jsonl.gz": (content, "it holds plain text"),
        "packed.jsonl": (gzip.compress(content), "it holds gzip"),
        "xz.jsonl.gz": (lzma.compress(content), "it holds xz"),
        "table.jsonl": (b"PAR1....PAR1", "it holds Parquet"),
        "useless.jsonl": (b"{}\n[]\n{}\n", r"\{'missing_chosen': 2, 'not_an_object': 1\}"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    found = {name: (folder / name, expected) for name, (_, expected) in files.items()}
    return {**found, "missing": (folder / "no", "nothing"), "folder": (folder, "a folder")}


def test_a_source_that_cannot_be_read_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for path, expected in bad_sources(tmp_path).values():
        with pytest.raises(InputError, match=expected) as raised:
            import_data("hh-rlhf", str(path), str(out), axis="safety")
        assert raised.value.field == "source"
        assert raised.value.value == str(path)
        assert not out.exists()


def test_a_parquet_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(b"PAR1 and no more")
    none = tmp_path / "none.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), none)
    lines = tmp_path / "lines.parquet"
    lines.write_text('{"prompt": "x"}')
    twice = tmp_path / "twice.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 2, names=["prompt", "prompt"]), twice)
    for path, expected in [
        (cut, "a Parquet file"),
        (none, "at least one row"),
        (lines, "it holds plain text"),
        (twice, "differ in name"),
    ]:
        with pytest.raises(InputError, match=expected):
            import_data("parquet", str(path), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"format": "csv"}, "format"),
        ({"axis": None}, "--axis"),
        ({"axis": "honesty"}, "--axis"),
        ({"safety_demonstrations": True}, "--safety-demonstrations"),
        ({"held_out_share": 1.0}, "--held-out-share"),
        ({"held_out_share": float("nan")}, "--held-out-share"),
        ({"validation_share": -0.1}, "--validation-share"),
        ({"held_out_share": 0.5, "validation_share": 0.5}, "--held-out-share and"),
        ({"out": ""}, "path"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    options = {
        "format": "hh-rlhf",
        "source": write_lines(tmp_path / "rows.jsonl", [hh("good", "bad")]),
        "out": str(tmp_path / "out"),
        "axis": "safety",
    }
    with pytest.raises(InputError) as raised:
        import_data(**{**options, **changes})
    assert raised.value.field.startswith(field)


def many(axis: str, count: int) -> list[dict[str, str]]:
    return [hh(f"good for {axis}", "bad", f"\n\nHuman: question {n}") for n in range(count)]


def two_sources(folder: Path) -> tuple[str, str]:
    """40 safety pairs, and 60 helpfulness pairs of which 40 have the same prompts."""
    safety = write_lines(folder / "safety.jsonl", many("safety", 40))
    return safety, write_lines(folder / "helpfulness.jsonl", many("helpfulness", 60))


def test_a_second_axis_joins_the_first(tmp_path: Path) -> None:
    safety, helpfulness = two_sources(tmp_path)
    out = str(tmp_path / "out")
    shares = {"held_out_share": 0.3, "validation_share": 0.2}
    import_data("hh-rlhf", safety, out, axis="safety", **shares)
    report = import_data("hh-rlhf", helpfulness, out, axis="helpfulness", **shares)
    assert sum(report.prompts.values()) == 60
    assert sum(report.directory.prompts.values()) == 60
    assert sum(report.directory.pairs.values()) == 100
    assert sum(report.directory.demonstrations.values()) == 100
    check_splits(out)
    directory = DataDirectory(out)
    prompts = [
        prompt
        for split in ("train", "held_out", "validation")
        for prompt in read_prompts(directory.prompts(split))
    ]
    # One prompt, one set of tags, in every table; any source that calls it adversarial is heard.
    tags = {prompt.id: prompt for prompt in prompts}
    assert sum(prompt.adversarial for prompt in prompts) == 40
    for part in ("train", "held_out"):
        for row in read_preferences(directory.preferences(part)):
            assert row.prompt == tags[row.prompt.id]
        for shown in read_demonstrations(directory.demonstrations(part)):
            assert shown.prompt == tags[shown.prompt.id]


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    safety, helpfulness = two_sources(tmp_path)
    out = str(tmp_path / "out")
    first = import_data("hh-rlhf", safety, out, axis="safety")
    alone = files_of(out)
    assert import_data("hh-rlhf", safety, out, axis="safety") == first
    assert files_of(out) == alone
    import_data("hh-rlhf", helpfulness, out, axis="helpfulness")
    both = files_of(out)
    import_data("hh-rlhf", safety, out, axis="safety")
    assert files_of(out) == both


def test_a_corrected_label_takes_the_old_ones_place(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    shares: dict[str, Any] = {"held_out_share": 0, "validation_share": 0}
    for rating in ("slightly", "significantly"):
        source = write_lines(tmp_path / "rows.jsonl", [{**PAIR, "rating": rating}])
        import_data("jsonl", source, out, axis="safety", **shares)
    [pair] = read_preferences(DataDirectory(out).preferences("train"))
    assert pair.rating == "significantly"


def test_splits_follow_seed_and_shares(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", many("safety", 1000))
    report = import_data("hh-rlhf", source, str(tmp_path / "a"), axis="safety")
    # Four standard deviations of a binomial count around 100 and 50.
    assert 62 < report.prompts["held_out"] < 138
    assert 22 < report.prompts["validation"] < 78
    assert sum(report.prompts.values()) == 1000
    assert report.pairs["train"] == report.prompts["train"]
    assert report.pairs["held_out"] == report.prompts["held_out"] + report.prompts["validation"]
    check_splits(str(tmp_path / "a"))
    other = import_data("hh-rlhf", source, str(tmp_path / "b"), axis="safety", seed=1)
    held_out = {
        name: {prompt.id for prompt in read_prompts(f"{tmp_path}/{name}/prompts/held_out.parquet")}
        for name in ("a", "b")
    }
    assert other.rows_kept == 1000
    assert held_out["a"] != held_out["b"]


def test_the_split_is_the_same_on_every_machine_and_for_near_copies() -> None:
    def share(text: str, seed: int = 0) -> float:
        return split_share(Prompt("", (Message("user", text),), None, None, False, False, ""), seed)

    assert share("Hello  World\n") == share("hello world")
    # sha256 of b"0\0user\0hello world" begins 373cec5e917e.
    assert share("hello world") == pytest.approx(0x373CEC5E917E / 2**48, abs=2**-47)
    assert share("hello world") != share("hello world", seed=1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 1}, "--seed"),
        ({"held_out_share": 0.2}, "--held-out-share"),
        ({"validation_share": 0.0}, "--validation-share"),
    ],
)
def test_a_directory_keeps_its_one_split(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    safety, helpfulness = two_sources(tmp_path)
    out = str(tmp_path / "out")
    import_data("hh-rlhf", safety, out, axis="safety")
    before = files_of(out)
    with pytest.raises(InputError) as raised:
        import_data("hh-rlhf", helpfulness, out, axis="helpfulness", **changes)
    assert raised.value.field == field
    assert files_of(out) == before


def test_an_import_that_dies_is_seen_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safety, helpfulness = two_sources(tmp_path)
    out, whole = str(tmp_path / "out"), str(tmp_path / "whole")
    for path in (out, whole):
        import_data("hh-rlhf", safety, path, axis="safety")
    import_data("hh-rlhf", helpfulness, whole, axis="helpfulness")

    def dies(uri: str, pairs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rayward.pipelines.data.merge, "write_preferences", dies)
        with pytest.raises(KeyboardInterrupt):
            import_data("hh-rlhf", helpfulness, out, axis="helpfulness")
    directory = DataDirectory(out)
    with pytest.raises(InputError, match="did not finish"):
        directory.require_complete()
    # What was there can still be read, and no other import may hide that one is half in.
    assert {pair.axis for pair in read_preferences(directory.preferences("train"))} == {"safety"}
    with pytest.raises(InputError, match=r"helpfulness\.jsonl"):
        import_data("hh-rlhf", safety, out, axis="safety")
    import_data("hh-rlhf", helpfulness, out, axis="helpfulness")
    directory.require_complete()
    assert files_of(out) == files_of(whole)


def test_a_directory_of_another_origin_is_not_joined(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [hh("good", "bad")])
    out = tmp_path / "out"
    write_prompts(
        str(out / "prompts" / "train.parquet"),
        [Prompt("p", (Message("user", "x"),), None, None, False, False, "elsewhere")],
    )
    before = files_of(str(out))
    with pytest.raises(InputError, match="how this one was split"):
        import_data("hh-rlhf", source, str(out), axis="safety")
    assert files_of(str(out)) == before
    for place in (source, f"{source}/below"):
        with pytest.raises(InputError) as raised:
            import_data("hh-rlhf", source, place, axis="safety")
        assert raised.value.field == "--out"


def test_a_damaged_directory_is_not_overwritten(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [hh("good", "bad")])
    out = tmp_path / "out"
    shares: dict[str, Any] = {"held_out_share": 0, "validation_share": 0}
    import_data("hh-rlhf", source, str(out), axis="safety", **shares)
    state = out / "import.json"
    good = state.read_bytes()
    state.write_text("{}")
    with pytest.raises(InputError, match=r"import\.json"):
        import_data("hh-rlhf", source, str(out), axis="safety", **shares)
    state.write_bytes(good)
    pairs = read_preferences(str(out / "preferences" / "train.parquet"))
    (out / "prompts" / "train.parquet").write_bytes(b"damaged")
    with pytest.raises(InputError, match="a Parquet file"):
        import_data("hh-rlhf", source, str(out), axis="safety", **shares)
    write_preferences(str(tmp_path / "copy.parquet"), pairs)
    assert (tmp_path / "copy.parquet").read_bytes() == (
        out / "preferences" / "train.parquet"
    ).read_bytes()


def test_the_command_prints_the_report_and_nothing_else(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [hh("a secret", "bad"), {}])
    out = str(tmp_path / "out")
    result = CliRunner().invoke(app, ["hh-rlhf", source, "--axis", "safety", "--out", out])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["rows_read"] == 2
    assert report["skipped"] == {"missing_chosen": 1}
    assert report["out"] == out
    assert "secret" not in result.output
    DataDirectory(out).require_complete()
    assert CliRunner().invoke(app, ["csv", source, "--out", out]).exit_code == 2


def by_hand(path: Path) -> Counter[str]:
    """Reads hh-rlhf by other means than the importer: no pattern, only plain text searches."""
    found: Counter[str] = Counter()
    seen = set()
    for line in gzip.decompress(path.read_bytes()).decode().strip("\n").split("\n"):
        row = json.loads(line)
        cut = {key: text.rindex("\n\nAssistant:") for key, text in row.items()}
        context = {key: text[: cut[key]].rstrip() for key, text in row.items()}
        marks = "".join(
            line[0]
            for line in row["chosen"].split("\n\n")
            if line.startswith(("Human:", "Assistant:"))
        )
        if context["chosen"] != context["rejected"]:
            found["contexts_differ"] += 1
        elif "AA" in marks or "HH" in marks:
            found["roles_do_not_alternate"] += 1
        elif row["chosen"].endswith("\n\nAssistant:") or row["chosen"].endswith("Assistant: "):
            found["empty_chosen"] += 1
        elif line in seen:
            found["duplicate"] += 1
        else:
            found["kept"] += 1
        seen.add(line)
    return found


@pytest.mark.skipif(
    not (REAL_DATA / "hh-rlhf-harmless.jsonl.gz").exists(),
    reason=f"the hh-rlhf samples are not in {REAL_DATA} (RAYWARD_REAL_DATA names their folder)",
)
def test_real_samples(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    harmless = REAL_DATA / "hh-rlhf-harmless.jsonl.gz"
    helpful = REAL_DATA / "helpful-preferences.jsonl.gz"
    safety = import_data("hh-rlhf", str(harmless), out, axis="safety")
    check_splits(out)
    helpfulness = import_data("hh-rlhf", str(helpful), out, axis="helpfulness")
    check_splits(out)
    for report, path in ((safety, harmless), (helpfulness, helpful)):
        check_sums(report)
        expected = by_hand(path)
        assert report.rows_kept == expected.pop("kept")
        assert report.skipped == expected
    assert (safety.rows_read, safety.rows_kept) == (1500, 1492)
    assert safety.skipped == {
        "contexts_differ": 1,
        "empty_chosen": 4,
        "roles_do_not_alternate": 3,
    }
    assert (helpfulness.rows_read, helpfulness.rows_kept) == (530, 529)
    assert helpfulness.skipped == {"duplicate": 1}
    assert sum(helpfulness.prompts.values()) == 148
    assert sum(helpfulness.directory.pairs.values()) == 1492 + 529
    assert helpfulness.without_safety_labels == 529
