"""Runs on their way to a store."""

import asyncio
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyarrow import fs

from rayward.cluster.atomic import write_bytes
from rayward.services.jobs.copies import Copies
from rayward.services.jobs.records import JobRecord, Records
from rayward.services.jobs.runs import RunFiles, RunsRoot
from tests.services.jobs.test_job_lease import Rays, service
from tests.services.jobs.test_job_queue import RECIPE


@pytest.fixture(autouse=True)
def _at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("rayward.services.jobs.copies._COPY_EVERY_S", 0.0)


def a_job(**changes: object) -> JobRecord:
    now = datetime.now(UTC)
    job = JobRecord(
        id="one", kind="recipe", name="r", priority=0, state="running", submitted=now, queued=now
    )
    return job.model_copy(update=changes)


def test_what_is_gone_from_the_store_already_stops_nothing(tmp_path: Path) -> None:
    """A deletion whose answer was lost."""
    store = tmp_path / "store"
    copies = Copies(RunsRoot(f"fsspec+file://{store}"))
    job = a_job()
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


def test_a_job_is_here_only_with_all_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = RunsRoot(f"fsspec+file://{tmp_path}/store")
    copies, job = Copies(root), a_job()
    Records(root).add(job, RECIPE)
    stages = ["a", "b"]
    for name in stages:
        write_bytes(f"{root.uri}/one/stages/{name}.json", b"{}")
    seen: list[tuple[str, list[str]]] = []

    def look(folder: object) -> None:
        run = copies.nearest("one").run("one")
        seen.append((Path(str(folder)).name, sorted(run.stages_done())))

    copy_files, rmtree = fs.copy_files, shutil.rmtree

    def copies_files(source: str, target: str, **options: fs.FileSystem) -> None:
        look(target)
        copy_files(source, target, **options)
        look(target)

    def removes(folder: Path, ignore_errors: bool) -> None:
        look(folder)
        rmtree(folder, ignore_errors=ignore_errors)
        look(folder)

    monkeypatch.setattr("rayward.services.jobs.copies.fs.copy_files", copies_files)
    monkeypatch.setattr("rayward.services.jobs.copies.shutil.rmtree", removes)
    copies.fetch(job)
    assert copies.nearest("one") is copies.place
    copies.finish(job)
    assert copies.nearest("one") is root
    assert {name for name, _ in seen} == {"one", ".one"}
    assert all(found == stages for _, found in seen)


@pytest.mark.parametrize("fails", [True, False])
def test_who_reads_while_a_run_moves_to_the_store_is_answered_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    root = RunsRoot(f"fsspec+file://{tmp_path}/store")
    copies, job = Copies(root), a_job(state="succeeded", ended=datetime.now(UTC))
    Records(root).add(job, RECIPE)
    write_bytes(f"{root.uri}/one/stages/a.json", b"{}")
    copies.fetch(job)
    stages_done = RunFiles.stages_done

    def after_it_has_moved(files: RunFiles) -> list[str]:
        if files.path.startswith(copies.place.path):
            copies.finish(job)
            if fails:
                raise FileNotFoundError("a folder that was there when its name was read")
            return []
        return stages_done(files)

    monkeypatch.setattr(RunFiles, "stages_done", after_it_has_moved)

    async def test() -> None:
        async with service(root.uri, monkeypatch, Rays()) as one:
            assert (await one.job("one")).stages_done == ["a"]

    asyncio.run(test())


def test_what_was_cut_short_is_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = RunsRoot(f"fsspec+file://{tmp_path}/store")
    copies, job = Copies(root), a_job()
    with pytest.raises(FileNotFoundError, match=r"store/\.jobs/one"):
        copies.fetch(job)
    Records(root).add(job, RECIPE)
    write_bytes(f"{root.uri}/one/manifest.json", b"{}")
    half = tmp_path / "store" / "one" / ".model.safetensors.0.tmp"
    half.write_text("half of an upload")
    copies.fetch(job)
    assert not half.exists()
    here = Path(copies.place.path, "one")
    assert [path.name for path in here.iterdir()] == ["manifest.json"]

    rmtree = shutil.rmtree

    def dies(folder: Path, ignore_errors: bool) -> None:
        if folder == here:
            raise KeyboardInterrupt
        rmtree(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr("rayward.services.jobs.copies.shutil.rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        copies.finish(job)
    monkeypatch.setattr("rayward.services.jobs.copies.shutil.rmtree", rmtree)
    assert here.is_dir()
    Copies(root).finish(job)
    assert [path.name for path in Path(copies.place.path).rglob("*")] == [".jobs"]
