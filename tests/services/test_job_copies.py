"""Runs on their way to a store."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.job_copies import Copies
from services.job_records import JobRecord
from services.job_runs import RunsRoot


def test_what_is_gone_from_the_store_already_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion whose answer was lost."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("services.job_copies._COPY_EVERY_S", 0.0)
    store = tmp_path / "store"
    copies = Copies(RunsRoot(f"fsspec+file://{store}"))
    now = datetime.now(UTC)
    job = JobRecord(
        id="one", kind="recipe", name="r", priority=0, state="running", submitted=now, queued=now
    )
    place = Path(copies.place.path)
    (place / ".jobs" / "one").mkdir(parents=True)
    old = place / "one" / "checkpoints" / "1"
    old.mkdir(parents=True)
    for name in ("a", "b"):
        (old / name).write_text(name)
    copies.bring(job)
    assert (store / "one" / "checkpoints" / "1" / "b").read_text() == "b"
    shutil.rmtree(old)
    (store / "one" / "checkpoints" / "1" / "a").unlink()
    (place / "one" / "status.json").write_text("{}")
    copies.bring(job)
    assert not (store / "one" / "checkpoints" / "1" / "b").exists()
    copies.finish(job)
    assert (store / "one" / "status.json").is_file()
    assert not (place / "one").exists()
