"""What a service finds when it starts: jobs of one that died, in a store that is no disk."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.services.jobs.copies import Copies
from rayward.services.jobs.records import JobRecord, Records
from rayward.services.jobs.runs import RunsRoot
from rayward.services.jobs.schemas import JobState
from tests.services.jobs.test_job_service import SMALL, address_of, wait_for
from tests.serving import Served, serving

_SECRET = "hf_do_not_tell_anybody"
SHORT: dict[str, Any] = {**SMALL, "reward_safety": {"batch_size": 4, "max_steps": 6}}


def record(name: str, state: JobState, **changes: object) -> JobRecord:
    now = datetime.now(UTC)
    job = JobRecord(
        id=name, kind="recipe", name="small", priority=0, state=state, submitted=now, queued=now
    )
    return job.model_copy(update=changes)


def drivers(place: Path) -> list[psutil.Process]:
    """The `rayward run` of the jobs whose runs are in a folder."""
    found = []
    for process in psutil.process_iter():
        # Others end meanwhile.
        with suppress(psutil.Error):
            words = process.cmdline()
            if words[:1] == [sys.executable] and "--out" in words and str(place) in str(words):
                found.append(process)
    return found


@pytest.mark.slow
def test_a_service_goes_on_where_one_died(tmp_path: Path, preloading: None) -> None:
    store = tmp_path / "store"
    uri = f"fsspec+file://{store}"
    root = RunsRoot(uri)
    assert not root.is_local
    records, recipe = Records(root), parse_recipe(SHORT)
    # A run of a cluster that is gone, and one that was still to come.
    started = {"started": datetime.now(UTC), "accepted": True}
    records.add(record("left", "running", **started), recipe)
    with RunDirectory.create(store / "left", recipe) as run:
        run.set_status("running", "reward_safety")
    (store / "left" / ".lock").unlink()
    records.add(record("waiting", "queued"), recipe.model_copy(update={"seed": 1}))
    scratch = Path(Copies(root).place.path)
    environment = {"HF_TOKEN": _SECRET}
    try:
        with (
            serving(tmp_path, {"jobs": {"runs_root": uri}}, environment, forked=True) as served,
            served.client() as jobs,
        ):
            wait_for(jobs, "left", "interrupted")
            wait_for(jobs, "waiting", "running")
            _nothing_secret_is_told(served, jobs, scratch)
            jobs.post("/v1/jobs/waiting/cancel")
            assert wait_for(jobs, "waiting", "cancelled") < 15
            assert not drivers(scratch)

            assert jobs.post("/v1/jobs/left/resume").json()["state"] == "queued"
            wait_for(jobs, "left", "succeeded", timeout_s=240)
            detail = jobs.get("/v1/jobs/left").json()
            assert detail["stages_done"] == ["reward_safety"]
            assert detail["run"] == f"{uri}/left"
            page = jobs.get("/v1/jobs/left/logs").json()
            assert page["complete"]
            assert "reward_safety 100/100" in page["text"]
            rows = jobs.get("/v1/jobs/left/metrics").json()["rows"]
            assert [row["step"] for row in rows] == [*range(1, 7)]
        # What was copied is no longer here.
        assert [path.name for path in scratch.rglob("*")] == [".jobs"]
    finally:
        shutil.rmtree(scratch)
    # All of it is in the store, as a run directory that can be used.
    run = RunDirectory(store / "left")
    assert run.status().state == "succeeded"
    assert run.manifest()["resumed"]
    assert (run.model_dir("reward_safety") / "model.safetensors").is_file()
    assert run.report_path.is_file()
    assert not list(store.rglob(".lock"))


def _nothing_secret_is_told(served: Served, jobs: httpx.Client, place: Path) -> None:
    deadline = time.monotonic() + 60
    while not (running := drivers(place)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # The job has what the service's machines have, without anybody naming it.
    assert running[0].environ()["HF_TOKEN"] == _SECRET
    own = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_ADDRESS": address_of(served)}
    listed = subprocess.run(
        [Path(sys.executable).with_name("ray"), "job", "list"],
        env=own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "RAY_JOB_STOP_WAIT_TIME_S" in listed.stdout
    answers = [jobs.get(f"/v1/jobs{path}").text for path in ("", "/waiting", "/waiting/logs")]
    for told in [listed.stdout, *answers]:
        assert _SECRET not in told
