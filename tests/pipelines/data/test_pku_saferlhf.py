"""PKU-SafeRLHF and BeaverTails, on rows whose outcome is worked out by hand."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayward.cluster.errors import InputError
from rayward.cluster.records.tables import (
    DataDirectory,
    read_demonstrations,
    read_preferences,
    read_prompts,
)
from rayward.cluster.types import RISK_CATEGORIES
from rayward.pipelines.data.import_data import ImportFormat, ImportReport, import_data
from rayward.pipelines.data.pku_saferlhf import (
    BEAVERTAILS_CATEGORIES,
    PKU_CATEGORIES,
    beavertails_row,
    pku_saferlhf_row,
)
from rayward.pipelines.data.rows import CHOSEN_UNSAFE, RowSkipped

ILLICIT = "illicit_and_criminal_activities"
HATEFUL = "hateful_and_harmful_activities"
ALL_TRAIN: dict[str, Any] = {"held_out_share": 0, "validation_share": 0}


def pku(
    prompt: str,
    safe: tuple[bool, bool] = (False, True),
    better: int = 1,
    safer: int = 1,
    harms: tuple[list[str], list[str]] | None = None,
    **changes: object,
) -> dict[str, Any]:
    """A row; without `harms` it has no columns of harm categories."""
    row: dict[str, Any] = {
        "prompt": prompt,
        "response_0": "zero",
        "response_1": "one",
        "is_response_0_safe": safe[0],
        "is_response_1_safe": safe[1],
        "better_response_id": better,
        "safer_response_id": safer,
    }
    for index, names in enumerate(harms or ()):
        row[f"response_{index}_harm_category"] = {name: name in names for name in PKU_CATEGORIES}
    return {**row, **changes}


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def files_of(out: str) -> dict[str, bytes]:
    root = Path(out)
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def check_sums(report: ImportReport) -> None:
    assert report.rows_read == report.rows_kept + sum(report.skipped.values())


# Pairs of either axis and safety demonstrations that a row adds; or why it is skipped.
PKU_ROWS: list[tuple[dict[str, Any], tuple[int, int, int] | str]] = [
    (pku("unsafe, safe"), (1, 1, 1)),
    (pku("unsafe, safe"), "duplicate"),
    (pku("unsafe, safe", better=0), "duplicate"),  # its helpfulness pair is excluded
    (pku("helpful but unsafe", better=0), (1, 0, 1)),
    (pku("safer is the unsafe one", safer=0), (0, 1, 0)),
    (pku("both preferred are unsafe", better=0, safer=0), "chosen_unsafe_rejected_safe"),
    (pku("both safe", safe=(True, True), better=0), (1, 1, 0)),
    (pku("both safe", safe=(True, True), better=1), (0, 1, 0)),  # contradicts; safety is known
    (pku("both unsafe", safe=(False, False), better=0), (1, 1, 0)),
    (pku("severity", response_0_severity_level=3, prompt_source="x"), (1, 1, 1)),
    (pku(" "), "empty_turn"),
    (pku("a", response_1=" "), "empty_chosen"),
    (pku("a", response_0=""), "empty_rejected"),
    (pku("a", response_0="one"), "identical_answers"),
    (pku("a", better_response_id=2), "invalid_better_response_id"),
    (pku("a", safer_response_id="1"), "invalid_safer_response_id"),
    (pku("a", safer_response_id=None), "missing_safer_response_id"),
    (pku("a", is_response_0_safe=0), "invalid_is_response_0_safe"),
    (pku("a", response_0=["zero"]), "invalid_response_0"),
    (pku("a", response_0_harm_category=["Drugs"]), "invalid_response_0_harm_category"),
    (without(pku("a"), "prompt"), "missing_prompt"),
    (without(pku("a"), "is_response_1_safe"), "missing_is_response_1_safe"),
]


def test_every_reason_of_pku_saferlhf_is_counted(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [row for row, _ in PKU_ROWS])
    out = str(tmp_path / "out")
    report = import_data("pku-saferlhf", source, out, **ALL_TRAIN)
    added = [outcome for _, outcome in PKU_ROWS if not isinstance(outcome, str)]
    assert report.rows_kept == len(added) == 7
    assert report.skipped == Counter(outcome for _, outcome in PKU_ROWS if isinstance(outcome, str))
    check_sums(report)
    assert report.noted == {
        "both_safe_not_adversarial": 2,
        "both_unsafe_not_demonstrated": 1,
        "contradicts_another_pair": 1,
        "helpfulness_pair_chosen_unsafe_rejected_safe": 1,
        "pair_is_duplicate": 1,
        "safety_pair_chosen_unsafe_rejected_safe": 1,
    }
    assert report.columns_ignored == {"prompt_source": 1, "response_0_severity_level": 1}
    axes = Counter(pair.axis for pair in read_preferences(DataDirectory(out).preferences("train")))
    assert axes["safety"] == sum(safety for safety, _, _ in added) == 5
    assert axes["helpfulness"] == sum(helpful for _, helpful, _ in added) == 6
    assert report.safety_demonstrations == {"train": 3, "held_out": 0}
    assert report.demonstrations == {"train": 0, "held_out": 0}
    assert report.without_safety_labels == 0
    assert sum(report.prompts.values()) == 6


def test_a_row_of_pku_saferlhf_arrives_whole(tmp_path: Path) -> None:
    row = pku("how to steal?", better=1, safer=0, safe=(True, False), harms=([], ["Cybercrime"]))
    row["better_response_id"] = 0
    source = write_lines(tmp_path / "rows.jsonl", [row])
    out = str(tmp_path / "out")
    import_data("pku-saferlhf", source, out, **ALL_TRAIN)
    directory = DataDirectory(out)
    safety, helpfulness = read_preferences(directory.preferences("train"))
    assert (safety.axis, helpfulness.axis) == ("safety", "helpfulness")
    for pair in (safety, helpfulness):
        assert (pair.chosen, pair.rejected) == ("zero", "one")
        assert (pair.chosen_safe, pair.rejected_safe, pair.rating) == (True, False, None)
    [prompt] = read_prompts(directory.prompts("train"))
    assert safety.prompt == helpfulness.prompt == prompt
    assert prompt.messages[0].content == "how to steal?"
    assert (prompt.adversarial, prompt.borderline) == (True, False)
    assert (prompt.risk_category, prompt.attack_vector) == (ILLICIT, None)
    assert prompt.source == f"{tmp_path.name}/rows.jsonl"
    [shown] = read_demonstrations(directory.safety_demonstrations("train"))
    assert (shown.prompt, shown.response) == (prompt, "zero")
    assert not directory.exists(directory.demonstrations("train"))


def test_the_two_axes_may_prefer_different_answers() -> None:
    row = pku_saferlhf_row(pku("x", safe=(True, True), better=0, safer=1), "here")
    assert [(pair.axis, pair.chosen) for pair in row.pairs] == [
        ("safety", "one"),
        ("helpfulness", "zero"),
    ]


@given(safe=st.tuples(st.booleans(), st.booleans()), better=st.sampled_from([0, 1]), data=st.data())
def test_no_row_teaches_an_unsafe_answer(
    safe: tuple[bool, bool], better: int, data: st.DataObject
) -> None:
    safer = data.draw(st.sampled_from([0, 1]))
    excluded = [not safe[chosen] and safe[1 - chosen] for chosen in (safer, better)]
    labelled = pku("x", safe=safe, better=better, safer=safer)
    if all(excluded):
        with pytest.raises(RowSkipped, match=CHOSEN_UNSAFE):
            pku_saferlhf_row(labelled, "here")
        return
    row = pku_saferlhf_row(labelled, "here")
    assert len(row.pairs) == 2 - sum(excluded)
    for pair in row.pairs:
        assert pair.chosen_safe or not pair.rejected_safe
    assert row.prompt.adversarial == (not all(safe))
    shown = row.demonstration is not None
    assert shown == row.is_safety_demonstration == (safe[safer] and not safe[1 - safer])
    assert row.demonstration is None or row.demonstration.response == ("zero", "one")[safer]
    assert row.unsafe_responses == tuple(
        text for text, is_safe in zip(("zero", "one"), safe, strict=True) if not is_safe
    )


def test_the_tables_name_every_category_of_the_data_sets() -> None:
    assert len(PKU_CATEGORIES) == 19
    assert len(BEAVERTAILS_CATEGORIES) == 14
    for table in (PKU_CATEGORIES, BEAVERTAILS_CATEGORIES):
        assert set(table.values()) <= {None, *RISK_CATEGORIES}
    assert PKU_CATEGORIES["Human Trafficking"] == ILLICIT
    assert BEAVERTAILS_CATEGORIES["financial_crime,property_crime,theft"] == ILLICIT
    assert PKU_CATEGORIES["Discriminatory Behavior"] == HATEFUL
    assert BEAVERTAILS_CATEGORIES["self_harm"] == HATEFUL
    assert PKU_CATEGORIES["Privacy Violation"] is None


@pytest.mark.parametrize(
    ("harms", "category", "noted"),
    [
        (([], []), None, []),
        ((["Drugs"], []), ILLICIT, []),
        ((["Drugs", "Cybercrime"], ["Violence"]), ILLICIT, []),
        ((["Drugs", "Sexual Content"], ["Sexual Content"]), ILLICIT, []),
        ((["Insulting Behavior"], ["Psychological Harm", "Drugs"]), HATEFUL, ["by_majority"]),
        # A category that both answers have counts twice: that is what decides here.
        ((["Drugs"], ["Drugs", "Insulting Behavior"]), ILLICIT, ["by_majority"]),
        ((["Drugs"], ["Insulting Behavior"]), None, ["tied"]),
        ((["Privacy Violation"], ["Sexual Content"]), None, ["not_mapped"]),
    ],
)
def test_the_risk_category_is_a_vote(
    harms: tuple[list[str], list[str]], category: str | None, noted: list[str]
) -> None:
    row = pku_saferlhf_row(pku("x", safe=(False, False), harms=harms), "here")
    assert row.prompt.risk_category == category
    assert [note for note in row.noted if "category" in note] == [
        f"risk_category_{note}" for note in noted
    ]


def test_an_unknown_or_absent_category_is_no_reason_to_skip() -> None:
    flags = {"Sorcery": True, "Drugs": True}
    row = pku_saferlhf_row(pku("x", response_0_harm_category=flags), "here")
    assert row.prompt.risk_category == ILLICIT
    assert "unknown_harm_category" in row.noted
    # A struct of Parquet has null for a name that the row does not give.
    nulls = dict.fromkeys(PKU_CATEGORIES, None)
    row = pku_saferlhf_row(
        pku("x", response_0_harm_category=nulls, response_1_harm_category=None), "here"
    )
    assert (row.prompt.risk_category, row.noted) == (None, ())


def test_one_unsafe_answer_in_any_row_makes_a_prompt_adversarial(tmp_path: Path) -> None:
    rows = [
        pku("x", safe=(True, True)),
        pku("x", safe=(False, True), response_0="other", response_1="no"),
        pku("y", safe=(True, True)),
    ]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    out = str(tmp_path / "out")
    import_data("pku-saferlhf", source, out, **ALL_TRAIN)
    directory = DataDirectory(out)
    tags = {row.messages[0].content: row for row in read_prompts(directory.prompts("train"))}
    assert {name: row.adversarial for name, row in tags.items()} == {"x": True, "y": False}
    for pair in read_preferences(directory.preferences("train")):
        assert pair.prompt == tags[pair.prompt.messages[0].content]
    [shown] = read_demonstrations(directory.safety_demonstrations("train"))
    assert shown.response == "no"


def test_parquet_and_packed_lines_are_read_as_plain_lines_are(tmp_path: Path) -> None:
    rows = [
        pku(f"prompt {n}", better=n % 2, harms=(["Drugs"] if n % 3 else [], [])) for n in range(6)
    ]
    plain = write_lines(tmp_path / "rows.jsonl", rows)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    found = []
    for number, source in enumerate((plain, str(packed), str(table))):
        out = str(tmp_path / str(number))
        report = import_data("pku-saferlhf", source, out, **ALL_TRAIN)
        pairs = read_preferences(DataDirectory(out).preferences("train"))
        found.append(
            (
                report.noted,
                report.directory,
                [(p.prompt.id, p.axis, p.chosen, p.prompt.risk_category) for p in pairs],
            )
        )
    assert found[0] == found[1] == found[2]
    # 3 rows prefer the unsafe answer for helpfulness.
    assert len(found[0][2]) == 9


def beaver(
    prompt: str, response: str, safe: bool, *harms: str, **changes: object
) -> dict[str, Any]:
    category = {name: name in harms for name in BEAVERTAILS_CATEGORIES}
    return {"prompt": prompt, "response": response, "category": category, "is_safe": safe}


THEFT = "financial_crime,property_crime,theft"
BEAVER_ROWS: list[tuple[dict[str, Any], str]] = [
    (beaver("steal?", "No.", True), "kept"),
    (beaver("steal?", "No.", True), "duplicate"),
    (beaver("steal?", "Better not.", True), "kept"),
    (beaver("steal?", "Break in.", False, THEFT), "kept"),
    (beaver("steal?", "Break in.", False, THEFT), "duplicate"),
    (beaver("steal?", "Just ask.", False, THEFT), "kept"),
    (beaver("first safe, then not", "Well.", True), "kept"),
    (beaver("first safe, then not", "Well.", False, "self_harm", THEFT), "kept"),
    (beaver("first not, then safe", "Well.", False, "privacy_violation"), "kept"),
    (beaver("first not, then safe", "Well.", True), "kept"),
    (beaver("a", " ", True), "empty_response"),
    (beaver("\n", "No.", True), "empty_turn"),
    ({**beaver("a", "No.", True), "is_safe": None}, "missing_is_safe"),
    ({**beaver("a", "No.", True), "is_safe": "yes"}, "invalid_is_safe"),
    ({**beaver("a", "No.", True), "category": "theft"}, "invalid_category"),
    ({**beaver("a", "No.", True), "prompt": 3}, "invalid_prompt"),
    (without(beaver("a", "No.", True), "response"), "missing_response"),
]


def test_every_reason_of_beavertails_is_counted(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [row for row, _ in BEAVER_ROWS])
    out = str(tmp_path / "out")
    report = import_data("beavertails", source, out, **ALL_TRAIN)
    outcomes = Counter(outcome for _, outcome in BEAVER_ROWS)
    assert report.rows_kept == outcomes.pop("kept") == 8
    assert report.skipped == outcomes
    check_sums(report)
    assert report.noted == {
        "risk_category_not_mapped": 1,
        "risk_category_tied": 1,
        "safety_labels_differ": 2,
        "unsafe_response_not_demonstrated": 4,
    }
    assert report.pairs == report.demonstrations == {"train": 0, "held_out": 0}
    directory = DataDirectory(out)
    shown = read_demonstrations(directory.safety_demonstrations("train"))
    # Where annotators differ, in whichever order, the answer is not shown.
    assert [row.response for row in shown] == ["No.", "Better not."]
    assert report.safety_demonstrations == {"train": 2, "held_out": 0}
    prompts = read_prompts(directory.prompts("train"))
    assert len(prompts) == 3
    assert all(prompt.adversarial for prompt in prompts)
    assert [prompt.risk_category for prompt in prompts] == [ILLICIT, None, None]


def test_a_beavertails_row_without_categories_is_kept() -> None:
    row = beavertails_row(without(beaver("x", "No.", True), "category"), "here")
    assert (row.prompt.risk_category, row.noted) == (None, ())


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "pku.jsonl", [row for row, _ in PKU_ROWS])
    two = write_lines(tmp_path / "beaver.jsonl", [row for row, _ in BEAVER_ROWS])
    out = str(tmp_path / "out")
    first = import_data("pku-saferlhf", one, out)
    alone = files_of(out)
    assert import_data("pku-saferlhf", one, out) == first
    assert files_of(out) == alone
    import_data("beavertails", two, out)
    both = files_of(out)
    import_data("pku-saferlhf", one, out)
    import_data("beavertails", two, out)
    assert files_of(out) == both


def test_a_later_import_takes_an_unsafe_answer_back(tmp_path: Path) -> None:
    safe = write_lines(tmp_path / "safe.jsonl", [beaver("x", "Well.", True)])
    unsafe = write_lines(tmp_path / "unsafe.jsonl", [beaver("x", "Well.", False)])
    out = str(tmp_path / "out")
    import_data("beavertails", safe, out, **ALL_TRAIN)
    directory = DataDirectory(out)
    assert len(read_demonstrations(directory.safety_demonstrations("train"))) == 1
    report = import_data("beavertails", unsafe, out, **ALL_TRAIN)
    assert report.directory.safety_demonstrations == {"train": 0, "held_out": 0}
    # A table without rows has no file: the old one would still show the answer.
    assert not directory.exists(directory.safety_demonstrations("train"))
    assert len(read_prompts(directory.prompts("train"))) == 1


@pytest.mark.parametrize("name", ["pku-saferlhf", "beavertails"])
def test_options_that_the_rows_answer_are_refused(tmp_path: Path, name: ImportFormat) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [pku("x"), beaver("x", "No.", True)])
    out = tmp_path / "out"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"axis": "safety"}, "--axis"),
        ({"safety_demonstrations": True}, "--safety-demonstrations"),
    ]
    for options, field in cases:
        with pytest.raises(InputError) as raised:
            import_data(name, source, str(out), **options)
        assert raised.value.field == field
        assert not out.exists()
