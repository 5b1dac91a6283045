"""Checkpoints on a real disk: only whole ones count."""

from pathlib import Path

import pytest

from rayward.cluster.runs.checkpoints import CheckpointStore
from tests.power import Disk


def write(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        with store.write(step) as directory:
            (directory / "policy").mkdir()
            (directory / "policy" / "weights").write_bytes(b"w" * step)
            (directory / "cursor").write_text("")


def test_a_checkpoint_holds_what_was_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.latest() is None
    write(store, 10)
    assert store.latest() == (10, tmp_path / "checkpoints" / "step-000010")
    assert (store.path(10) / "policy" / "weights").read_bytes() == b"w" * 10


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    write(store, 1, 2)
    store.keep_also = {1}
    write(store, 3, 4, 1_000_000)
    assert store.complete() == [1, 4, 1_000_000]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_old_one_stands_until_the_new_one_does(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    write(store, 1)
    with store.write(2) as directory:
        assert directory.name == "step-000002.partial"
        (directory / "weights").write_bytes(b"w")
        assert store.complete() == [1]
    assert store.complete() == [2]


def test_an_error_leaves_no_checkpoint_and_the_next_write_cleans_up(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    write(store, 1)

    def half() -> None:
        with store.write(2) as directory:
            (directory / "weights").write_bytes(b"half")
            raise RuntimeError("a rank died")

    with pytest.raises(RuntimeError, match="a rank died"):
        half()
    assert store.latest() == (1, store.path(1))
    assert (tmp_path / "step-000002.partial").is_dir()
    write(store, 3)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-000001", "step-000003"]


def test_a_damaged_checkpoint_does_not_count(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=9)
    write(store, 1, 2, 3, 4)
    (store.path(4) / "COMPLETE").unlink()
    (store.path(3) / "policy" / "weights").write_bytes(b"w")
    (store.path(2) / "cursor").unlink()
    assert store.latest() == (1, store.path(1))
    write(store, 2)
    assert store.complete() == [1, 2]


def test_a_complete_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    write(store, 5)
    with pytest.raises(FileExistsError, match="step-000005"), store.write(5):
        pass
    assert store.complete() == [5]


def test_keep_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        CheckpointStore(tmp_path, keep=0)


def test_a_checkpoint_that_has_its_name_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    store = CheckpointStore(tmp_path, keep=1)
    write(store, 3)
    order = [one.path.name if one.kind == "sync" else f"-> {one.path.name}" for one in disk.events]
    # Whoever fills it may not have synced anything: all of it comes before the marker.
    assert {"cursor", "policy", "weights"} == set(order[:3])
    assert order[4:] == ["-> COMPLETE", "step-000003.partial", "-> step-000003", tmp_path.name]
