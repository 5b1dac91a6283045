"""Two services on one runs root: one keeps the jobs, the other waits, watches, takes over."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rayward.cluster.atomic import write_bytes
from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.serving import JobServiceSettings
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.services.jobs import service as job_service
from rayward.services.jobs.lease import Lease
from rayward.services.jobs.records import JobRecord, Records
from rayward.services.jobs.refusals import Refusal
from rayward.services.jobs.runs import RunsRoot
from rayward.services.jobs.schemas import JobState, SubmitRequest, Submitted
from rayward.services.jobs.service import JobService
from tests.services.jobs.test_job_queue import RECIPE, RayOfTest

CONFIG: dict[str, Any] = RECIPE.model_dump(mode="json")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "lease._SETTLE_S": 0.05,
        "lease._RENEW_EVERY_S": 0.05,
        "lease._LOOK_EVERY_S": 0.05,
        "lease._HELD_S": 2.0,
        "lease._EXPIRED_S": 3.0,
        "runner._LOOK_EVERY_S": 0.01,
        "service._RECORDS_KEPT_S": 0.05,
        "service._LEASE_PATIENCE_S": 2.0,
    }.items():
        monkeypatch.setattr(f"rayward.services.jobs.{name}", seconds)


def uri(folder: Path, kind: str) -> str:
    return str(folder) if kind == "local" else f"fsspec+file://{folder}"


def a_process_that_is_gone() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


@pytest.mark.parametrize("kind", ["local", "store"])
def test_one_of_two_has_it_and_the_other_gets_it_when_it_is_let_go(
    tmp_path: Path, kind: str
) -> None:
    one, two = (Lease(RunsRoot(uri(tmp_path, kind))) for _ in range(2))
    assert one.try_to_take()
    assert not two.try_to_take()
    assert (one.is_held, one.other) == (True, None)
    assert (two.is_held, two.other) == (False, f"process {os.getpid()} on {socket.gethostname()}")
    two.release()
    assert one.is_held
    one.release()
    assert not list((tmp_path / ".jobs").iterdir())
    assert two.try_to_take()
    assert two.other is None


def test_of_many_at_once_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Eight threads on a busy machine are slow to write what they have found free.
    monkeypatch.setattr("rayward.services.jobs.lease._SETTLE_S", 0.5)
    leases = [Lease(RunsRoot(str(tmp_path))) for _ in range(8)]

    async def test() -> None:
        took = [asyncio.create_task(lease.take()) for lease in leases]
        await asyncio.wait(took, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.6)
        assert sum(lease.is_held for lease in leases) == 1
        for task in took:
            task.cancel()

    asyncio.run(test())


def test_a_holder_that_says_nothing_has_stopped_before_another_begins(tmp_path: Path) -> None:
    one, two = (Lease(RunsRoot(str(tmp_path))) for _ in range(2))
    assert one.try_to_take()
    began = time.monotonic()
    while not two.try_to_take():
        assert time.monotonic() - began < 60
        time.sleep(0.02)
    assert time.monotonic() - began >= 3.0
    assert not one.is_held
    # Awake again, it does not take back what it has lost.
    one.renew()
    assert not one.is_held
    assert two.is_held
    one.release()
    assert not one.try_to_take()


def test_one_that_is_renewed_stays(tmp_path: Path) -> None:
    one, two = (Lease(RunsRoot(str(tmp_path))) for _ in range(2))

    async def test() -> None:
        await one.take()
        keep, take = asyncio.create_task(one.keep()), asyncio.create_task(two.take())
        await asyncio.sleep(4.0)
        assert one.is_held
        assert not two.is_held
        # Somebody who believed it to be free, and writes again if they wrote at one time.
        async with asyncio.timeout(60):
            while not keep.done():
                write_bytes(f"{tmp_path}/.jobs/lease.json", b"{}")
                await asyncio.sleep(0.2)
        assert not one.is_held
        await asyncio.wait_for(take, 60.0)

    asyncio.run(test())


def test_one_of_a_process_that_was_killed_is_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayward.services.jobs.lease._EXPIRED_S", 1000.0)
    one, two = (Lease(RunsRoot(str(tmp_path))) for _ in range(2))
    assert one.try_to_take()
    path = tmp_path / ".jobs" / "lease.json"
    gone = path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {a_process_that_is_gone()}')
    # The same number in another container, or on another machine, says nothing.
    for elsewhere in ('"host": "x', '"pids": "x'):
        path.write_text(gone.replace(elsewhere[:-1], elsewhere))
        assert not two.try_to_take()
    path.write_text(gone)
    assert two.try_to_take()


class Rays(RayOfTest):
    """Each service has a Ray of its own; this one also lists."""

    def all(self) -> list[Any]:
        return []


@asynccontextmanager
async def service(root: str, monkeypatch: pytest.MonkeyPatch, ray: Rays) -> AsyncIterator[Any]:
    monkeypatch.setattr(job_service, "RayJobs", lambda _: ray)
    made = JobService(JobServiceSettings(runs_root=root))
    try:
        yield made
    finally:
        made.__del__()


async def until(question: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not await question():
            await asyncio.sleep(0.02)


async def state_at(one: Any, job: str) -> str:  # noqa: ANN401
    found = await one.job(job)
    assert not isinstance(found, Refusal), found
    return str(found.state)


@pytest.mark.parametrize("kind", ["local", "store"])
def test_two_services_on_one_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    root, runs = uri(tmp_path / "runs", kind), tmp_path / "runs"
    old, new = Rays(), Rays()
    request = SubmitRequest(kind="recipe", config=CONFIG)

    async def test() -> None:
        async with (
            service(root, monkeypatch, new) as second,
            service(root, monkeypatch, old) as first,
        ):
            # Which of the two is first to take it does not matter.
            keeper, other = first, second
            await until(lambda: keeps(first, second))
            if second._lease.is_held:
                keeper, other = second, first
            ray_of = {id(first): old, id(second): new}
            running = await submitted(keeper, request)
            waiting = await submitted(keeper, request)
            await until(lambda: is_state(other, running, "running"))
            for refused in (
                await other.submit(request, None),
                await other.cancel(waiting),
                await other.resume(waiting),
            ):
                assert isinstance(refused, Refusal)
                assert (refused.status, refused.code) == (503, "kept_elsewhere")
                assert refused.retry_after_s
                assert f"process {os.getpid()} on {socket.gethostname()}" in refused.message
            await other.check_health()
            # What the keeper changes the other one shows.
            assert (await keeper.cancel(waiting)).state == "cancelled"
            await until(lambda: is_state(other, waiting, "cancelled"))
            listed = await other.jobs(50, None, None)
            assert {job.id for job in listed.jobs} == {running, waiting}
            # Ray of the other one knows nothing of the job, and ends nothing.
            await asyncio.sleep(0.3)
            assert ray_of[id(other)].submitted == []
            assert await state_at(keeper, running) == "running"
            keeper.__del__()
            refused = await keeper.submit(request, None)
            assert isinstance(refused, Refusal)
            # The next one takes over, with all that was written, and works.
            await until(lambda: keeps(other))
            again = await submitted(other, request)
            await until(lambda: is_state(other, running, "interrupted"))
            await until(lambda: is_state(other, again, "running"))
            assert [name for name, _ in ray_of[id(other)].submitted] == [again]
        assert not (runs / ".jobs" / "lease.json").exists()

    asyncio.run(test())


async def keeps(*services: Any) -> bool:  # noqa: ANN401
    return any(one._lease.is_held and one._keeps_jobs.is_set() for one in services)


async def is_state(one: Any, job: str, state: JobState) -> bool:  # noqa: ANN401
    return await state_at(one, job) == state


async def submitted(one: Any, request: SubmitRequest) -> str:  # noqa: ANN401
    found = await one.submit(request, None)
    assert isinstance(found, Submitted), found
    return found.job.id


def test_a_service_that_loses_the_lease_changes_nothing_and_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = Rays()
    request = SubmitRequest(kind="recipe", config=CONFIG)

    async def test() -> None:
        async with service(str(tmp_path), monkeypatch, ray) as one:
            job = await submitted(one, request)
            await until(lambda: is_state(one, job, "running"))
            lease = tmp_path / ".jobs" / "lease.json"
            stolen = lease.read_text().replace(one._lease._id, "another")
            stolen = stolen.replace('"host": "', '"host": "other-')
            # Again if both wrote at one time.
            async with asyncio.timeout(60):
                while one._keeps_jobs.is_set():
                    write_bytes(str(lease), stolen.encode())
                    await asyncio.sleep(0.2)
            await until(lambda: refuses(one, request))
            before = (tmp_path / ".jobs" / job / "job.json").read_text()
            ray.becomes(job, "succeeded")
            await asyncio.sleep(0.3)
            assert (tmp_path / ".jobs" / job / "job.json").read_text() == before
            await one.check_health()
            # Whoever took it is silent, so it comes back, and the work goes on.
            await until(lambda: is_state(one, job, "succeeded"))
            await submitted(one, request)

    asyncio.run(test())


def test_a_store_that_is_slow_to_list_costs_nobody_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Records.load
    request = SubmitRequest(kind="recipe", config=CONFIG)

    def slowly(records: Records) -> dict[str, JobRecord]:
        time.sleep(3.0)
        return load(records)

    async def test() -> None:
        async with service(str(tmp_path), monkeypatch, Rays()) as one:
            monkeypatch.setattr(Records, "load", slowly)
            await until(lambda: keeps(one))
            await submitted(one, request)

    asyncio.run(test())


async def refuses(one: Any, request: SubmitRequest) -> bool:  # noqa: ANN401
    found = await one.submit(request, None)
    return isinstance(found, Refusal) and "other-" in found.message


@pytest.mark.parametrize(
    ("writes", "ends"), [("here", "succeeded"), ("elsewhere", "succeeded"), ("silent", None)]
)
@pytest.mark.parametrize("accepted", [True, False])
def test_a_job_of_the_cluster_before_goes_on_to_its_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: str,
    ends: JobState | None,
    accepted: bool,
) -> None:
    """The service that kept the jobs is gone; the job that its Ray runs is not."""
    root, ray = RunsRoot(str(tmp_path)), Rays()
    started = datetime.now(UTC) - timedelta(seconds=1)
    job = JobRecord(
        id="before",
        kind="recipe",
        name="r",
        priority=0,
        state="running",
        submitted=started,
        queued=started,
        started=started,
        accepted=accepted,
    )
    Records(root).add(job, parse_recipe(CONFIG))
    run = RunDirectory.create(tmp_path / "before", RECIPE)
    run.set_status("running", "sft")
    waits = "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", waits, "--out", str(run.root)])
    here = f"process {process.pid} on {socket.gethostname()}\n"
    owner = here if writes == "here" else "process 1 on elsewhere\n"
    (run.root / ".lock").write_text(owner)
    if writes == "silent":
        long_ago = time.time() - 3600
        os.utime(run.root / "status.json", (long_ago, long_ago))

    async def test() -> None:
        async with service(str(tmp_path), monkeypatch, ray) as one:
            if ends is None:
                if accepted:
                    await until(lambda: is_state(one, "before", "interrupted"))
                else:
                    await until(lambda: is_begun(ray))
                return
            await until(lambda: keeps(one))
            await asyncio.sleep(0.5)
            assert await state_at(one, "before") == "running"
            assert ray.submitted == []
            run.set_status(ends)
            await until(lambda: is_state(one, "before", ends))

    try:
        asyncio.run(test())
    finally:
        process.kill()
        process.wait()
        run.close()


async def is_begun(ray: Rays) -> bool:
    return ray.submitted == [("before", True)]


def test_a_job_whose_process_is_killed_is_interrupted_and_its_number_may_be_used_again(
    tmp_path: Path,
) -> None:
    """This test's own process has the number now, and is no job."""
    with RunDirectory.create(tmp_path / "one", RECIPE) as run:
        run.set_status("running", "sft")
        files = RunsRoot(str(tmp_path)).run("one")
        assert not files.is_at_work(None)
        # Of an attempt before, on another machine.
        (run.root / ".lock").write_text("process 1 on elsewhere\n")
        assert files.is_at_work(datetime.now(UTC) - timedelta(minutes=1))
        assert not files.is_at_work(datetime.now(UTC) + timedelta(minutes=1))
