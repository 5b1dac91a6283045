"""Tables and data directories, on real Parquet files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayward.cluster import atomic
from rayward.cluster.atomic import join, new_directory, read_bytes, resolve, write_bytes
from rayward.cluster.errors import InputError
from rayward.cluster.records.tables import (
    DEMONSTRATIONS,
    PREFERENCES,
    PROMPTS,
    DataDirectory,
    read_demonstrations,
    read_preferences,
    read_prompts,
    write_demonstrations,
    write_preferences,
    write_prompts,
)
from rayward.cluster.types import (
    ATTACK_VECTORS,
    AXES,
    RATINGS,
    RISK_CATEGORIES,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
)

TEXT = st.text(max_size=20)  # any code point but surrogates: NUL, emoji, right-to-left, ...
MESSAGES = st.tuples(
    st.lists(
        st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=3
    ),
    TEXT,
).map(lambda parts: (*parts[0], Message("user", parts[1])))
PROMPT = st.builds(
    Prompt,
    id=TEXT,
    messages=MESSAGES,
    risk_category=st.none() | st.sampled_from(RISK_CATEGORIES),
    attack_vector=st.none() | st.sampled_from(ATTACK_VECTORS),
    adversarial=st.booleans(),
    borderline=st.booleans(),
    source=TEXT,
)
LABEL = st.none() | st.booleans()
PAIR = st.builds(
    PreferencePair,
    prompt=PROMPT,
    chosen=TEXT,
    rejected=TEXT,
    axis=st.sampled_from(AXES),
    rating=st.none() | st.sampled_from(RATINGS),
    chosen_safe=LABEL,
    rejected_safe=LABEL,
)


def prompt(**changes: object) -> Prompt:
    fields: dict[str, Any] = {
        "id": "p",
        "messages": (Message("user", "hello"),),
        "risk_category": None,
        "attack_vector": None,
        "adversarial": False,
        "borderline": False,
        "source": "test",
    }
    return Prompt(**{**fields, **changes})


@settings(max_examples=50)
@given(prompts=st.lists(PROMPT, min_size=1, max_size=5, unique_by=lambda row: row.id))
def test_prompts_come_back_equal(
    prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "prompts.parquet")
    write_prompts(path, prompts)
    assert read_prompts(path) == prompts


@settings(max_examples=50)
@given(
    demonstrations=st.lists(st.builds(Demonstration, PROMPT, TEXT), min_size=1, max_size=5),
    pairs=st.lists(PAIR, min_size=1, max_size=5),
)
def test_demonstrations_and_pairs_come_back_equal(
    demonstrations: list[Demonstration],
    pairs: list[PreferencePair],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_demonstrations(str(folder / "d.parquet"), demonstrations)
    write_preferences(str(folder / "p.parquet"), pairs)
    assert read_demonstrations(str(folder / "d.parquet")) == demonstrations
    assert read_preferences(str(folder / "p.parquet")) == pairs


ROW: dict[str, Any] = {
    "id": "p0",
    "messages": [{"role": "user", "content": "hello"}],
    "risk_category": None,
    "attack_vector": "other",
    "adversarial": True,
    "borderline": False,
    "source": "test",
    "chosen": "good",
    "rejected": "bad",
    "axis": "safety",
    "rating": None,
    "chosen_safe": None,
    "rejected_safe": False,
}
NULLABLE = pa.schema([field.with_nullable(True) for field in PREFERENCES])


@pytest.mark.parametrize(
    ("column", "bad", "found", "expected"),
    [
        ("id", None, None, "a value"),
        ("adversarial", None, None, "a value"),
        ("chosen", None, None, "a value"),
        ("axis", None, None, "a value"),
        ("messages", None, None, "a value"),
        ("messages", [], [], "at least one message"),
        ("messages", [None], None, "a role and a content"),
        ("messages", [{"role": "user", "content": None}], None, "a role and a content"),
        ("messages", [{"role": "human", "content": "x"}], "human", "system, user, assistant"),
        ("messages", [{"role": "assistant", "content": "x"}], "assistant", "role is user"),
        ("risk_category", "piracy", "piracy", "unqualified_advice or null"),
        ("attack_vector", "magic", "magic", "non_english, other or null"),
        ("rating", "much better", "much better", "significantly"),
        ("axis", "honesty", "honesty", "safety, helpfulness"),
    ],
)
def test_a_wrong_value_is_named_with_its_column_and_row(
    tmp_path: Path, column: str, bad: object, found: object, expected: str
) -> None:
    path = tmp_path / "p.parquet"
    rows = [ROW, {**ROW, "id": "p1", column: bad}]
    pq.write_table(pa.Table.from_pylist(rows, schema=NULLABLE), path)
    with pytest.raises(InputError) as raised:
        read_preferences(str(path))
    assert raised.value.field == f"{path}: column {column}, row 1 (counted from 0)"
    assert raised.value.value == found
    assert expected in raised.value.expected


def test_the_same_table_without_the_fault_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([ROW, ROW], schema=NULLABLE), path)
    assert [pair.rejected_safe for pair in read_preferences(str(path))] == [False, False]


def test_columns_must_be_exactly_those_of_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    table = pa.Table.from_pylist([ROW], schema=PREFERENCES)
    wrong = {
        "rating": table.drop_columns(["rating"]),
        "score": table.append_column("score", pa.array([0.5])),
        "adversarial": table.set_column(4, "adversarial", pa.array([1])),
        "messages": table.set_column(1, "messages", pa.array([["hello"]])),
    }
    for column, changed in wrong.items():
        pq.write_table(changed, path)
        with pytest.raises(InputError, match=f"column {column}") as raised:
            read_preferences(str(path))
        assert raised.value.field == f"{path}: column {column}"


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.parquet"
    text = tmp_path / "text.parquet"
    text.write_text("not Parquet at all")
    cut = tmp_path / "cut.parquet"
    write_prompts(str(cut), [prompt()])
    cut.write_bytes(cut.read_bytes()[:-9])
    empty = tmp_path / "empty.parquet"
    pq.write_table(PROMPTS.empty_table(), empty)
    for path, expected in [
        (missing, "exists"),
        (tmp_path, "exists"),
        (text, "a Parquet file"),
        (cut, "a Parquet file"),
        (empty, "at least one row"),
    ]:
        with pytest.raises(InputError, match=expected) as raised:
            read_prompts(str(path))
        assert str(path) in str(raised.value)


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    for rows, expected in [
        ([], "at least one row"),
        ([prompt(), prompt()], "row 0 has this one"),
        ([prompt(messages=())], "at least one message"),
        ([prompt(attack_vector="magic")], "one of"),
    ]:
        with pytest.raises(InputError, match=expected):
            write_prompts(str(path), rows)
    assert not path.exists()


def test_the_schemas_hold_every_field_of_the_types() -> None:
    assert PROMPTS.names == list(Prompt.__dataclass_fields__)
    for schema, kind in ((DEMONSTRATIONS, Demonstration), (PREFERENCES, PreferencePair)):
        own = [name for name in kind.__dataclass_fields__ if name != "prompt"]
        assert schema.names == PROMPTS.names + own


def test_a_relative_path_is_resolved_against_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts("new folder/p.parquet", [prompt()])
    assert read_prompts(f"file://{tmp_path}/new%20folder/p.parquet") == [prompt()]


def test_tables_live_in_an_object_store_as_well() -> None:
    pytest.importorskip("fsspec", reason="the in-memory object store is fsspec's")
    directory = DataDirectory("fsspec+memory://test-tables/data")
    with pytest.raises(InputError, match="_SUCCESS"):
        directory.require_complete()
    write_prompts(directory.prompts("held_out"), [prompt()])
    directory.mark_complete()
    directory.require_complete()
    assert read_prompts("fsspec+memory://test-tables/data/prompts/held_out.parquet") == [prompt()]
    assert not directory.exists(directory.prompts("train"))
    directory.mark_incomplete()
    assert not directory.is_complete()


def test_a_data_directory_names_its_files() -> None:
    local = DataDirectory("/data/set/")
    assert local.prompts("validation") == "/data/set/prompts/validation.parquet"
    assert local.demonstrations("train") == "/data/set/demonstrations/train.parquet"
    store = DataDirectory("s3://bucket/set?scheme=http&endpoint_override=localhost:9000")
    assert store.preferences("held_out") == (
        "s3://bucket/set/preferences/held_out.parquet?scheme=http&endpoint_override=localhost:9000"
    )
    assert join("/odd?name", "x") == "/odd?name/x"


@pytest.mark.parametrize("uri", ["", "floppy://a/b"])
def test_an_unknown_place_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"s3://bucket|floppy"):
        resolve(uri)


def test_a_write_that_dies_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(str(path), b"old")

    def dies(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(str(path), b"new and longer")
    assert read_bytes(str(path)) == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "checkpoint"

    def dies() -> None:
        with new_directory(target) as folder:
            (folder / "weights").write_bytes(b"half")
            raise RuntimeError("dies")

    with pytest.raises(RuntimeError, match="dies"):
        dies()
    assert not target.exists()
    with new_directory(target) as folder:
        (folder / "weights").write_bytes(b"whole")
        assert not target.exists()
    assert (target / "weights").read_bytes() == b"whole"
    with pytest.raises(FileExistsError), new_directory(target):
        pass
