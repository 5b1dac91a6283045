"""The queue, and what its runner makes of whatever Ray may say."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.runs.run_directory import RunDirectory, RunState
from rayward.services.http.errors import ApiError
from rayward.services.jobs.copies import Copies
from rayward.services.jobs.history import History
from rayward.services.jobs.lease import Lease, LeaseLost
from rayward.services.jobs.queue import JobQueue
from rayward.services.jobs.ray_jobs import RayAway, RayJob
from rayward.services.jobs.records import JobRecord, Records, digest, new_id
from rayward.services.jobs.runner import JobRunner
from rayward.services.jobs.runs import RunsRoot
from rayward.services.jobs.schemas import JobState

RECIPE = parse_recipe(
    {"name": "r", "data": {"tiny_world": {}}, "model": {"make": {}}, "stages": ["sft"]}
)


@dataclass
class RayOfTest:
    """Ray's job API as far as the runner asks it; a test says what becomes of a job."""

    jobs: dict[str, RayJob] = field(default_factory=dict)
    submitted: list[tuple[str, bool]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    loses_answers: int = 0
    is_away: bool = False
    refuses: str | None = None

    def submit(self, submission_id: str, recipe: Path, out: Path, log: Path, resume: bool) -> None:
        assert recipe.is_file()
        assert submission_id not in self.jobs
        if self.refuses and self.refuses in submission_id:
            raise RayAway("no room for another process")
        self.submitted.append((submission_id, resume))
        self.jobs[submission_id] = RayJob(submission_id, "running", "", None, None, None)
        if self.loses_answers:
            self.loses_answers -= 1
            raise RayAway("the answer was lost")

    def find(self, submission_id: str) -> RayJob | None:
        if self.is_away:
            raise RayAway("nobody answers")
        return self.jobs.get(submission_id)

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)

    def becomes(self, submission_id: str, state: JobState, message: str | None = None) -> None:
        job = self.jobs[submission_id]
        self.jobs[submission_id] = replace(job, state=state, message=message)


@dataclass
class Bench:
    """A queue, its runner at work, and the Ray that it asks."""

    queue: JobQueue
    lease: Lease
    runner: JobRunner
    ray: RayOfTest
    runs: Path

    async def add(self, priority: int = 0, key: str | None = None) -> JobRecord:
        job, _ = await self.queue.add("recipe", RECIPE, priority, key, "request")
        return job

    def now(self, job: JobRecord) -> JobRecord:
        found = self.queue.find(job.id)
        assert found is not None
        return found

    async def until(self, job: JobRecord, state: JobState) -> JobRecord:
        async with asyncio.timeout(10):
            while self.now(job).state != state:
                await asyncio.sleep(0.01)
        return self.now(job)

    async def accepted(self, job: JobRecord) -> JobRecord:
        async with asyncio.timeout(10):
            while not self.now(job).accepted:
                await asyncio.sleep(0.01)
        return self.now(job)

    def run_says(self, job: JobRecord, state: RunState, error: str | None = None) -> None:
        with RunDirectory.create(self.runs / job.id, RECIPE) as run:
            run.set_status(state, error=error)


def bench(runs: Path, max_running: int = 1, grace_s: float = 0.2, max_queued: int = 100) -> Bench:
    root = RunsRoot(str(runs))
    lease = Lease(root)
    # Whoever comes second only reads.
    lease.try_to_take()
    queue, ray = JobQueue(Records(root), max_queued, lease), RayOfTest()
    runner = JobRunner(queue, root, Copies(root), ray, max_running, grace_s)  # type: ignore[arg-type]
    return Bench(queue, lease, runner, ray, runs)


def at_work(one: Bench, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test while the runner works; what ends the runner ends the test."""

    async def both() -> None:
        keep = asyncio.create_task(one.lease.keep())
        work, tested = asyncio.create_task(one.runner.run()), asyncio.create_task(test())
        done, _ = await asyncio.wait({work, tested}, return_when=asyncio.FIRST_COMPLETED)
        for task in (keep, work):
            task.cancel()
        for task in done:
            task.result()

    asyncio.run(both())


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayward.services.jobs.runner._LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("rayward.services.jobs.runner._PATIENCE_S", 0.2)
    monkeypatch.setattr("rayward.services.jobs.lease._SETTLE_S", 0.0)


@given(name=st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z"))
def test_ids_fit_ray_and_differ(name: str) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    one, two = new_id(name, now), new_id(name, now)
    assert one != two
    assert "-20260102-030405-" in one
    for job in (one, f"{one}-99"):
        assert len(job) <= 63
        assert set(job) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert job[0] != "-"


def test_the_highest_goes_first_then_the_oldest(tmp_path: Path) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        added = [await one.add(priority) for priority in (0, 5, 0, 5, -1)]
        order = [added[place].id for place in (1, 3, 0, 2, 4)]
        assert [job.id for job in one.queue.next(9)] == order
        assert [job.id for job in one.queue.next(2)] == order[:2]
        # Whoever reads the records finds the same.
        assert [job.id for job in bench(tmp_path).queue.next(9)] == order

    asyncio.run(test())


def test_one_key_is_one_job_also_for_the_next_process(tmp_path: Path) -> None:
    one = bench(tmp_path, max_queued=2)

    async def test() -> None:
        both = await asyncio.gather(*(one.add(key="k") for _ in range(10)))
        assert len({job.id for job in both}) == 1
        next_one = bench(tmp_path, max_queued=2)
        known = next_one.queue.replay("k", "request")
        assert known is not None
        assert known.id == both[0].id
        with pytest.raises(ApiError) as refused:
            await one.queue.add("recipe", RECIPE, 0, "k", "another")
        assert refused.value.status == 409
        await one.add()
        with pytest.raises(ApiError) as refused:
            await one.add()
        assert (refused.value.status, refused.value.code) == (503, "queue_full")
        # The same request again is no new job.
        assert (await one.add(key="k")).id == known.id

    asyncio.run(test())
    assert '"k"' not in "".join(path.read_text() for path in tmp_path.rglob("job.json"))


def test_digests_do_not_depend_on_order() -> None:
    assert digest({"a": 1, "b": [2, {"c": 3, "d": 4}]}) == digest(
        {"b": [2, {"d": 4, "c": 3}], "a": 1}
    )
    assert digest({"a": 1}) != digest({"a": 1.5})


def test_so_many_run_and_the_next_follows(tmp_path: Path) -> None:
    one = bench(tmp_path, max_running=2)

    async def test() -> None:
        first, second, third = [await one.add() for _ in range(3)]
        await one.accepted(first)
        await one.accepted(second)
        await asyncio.sleep(0.1)
        assert one.now(third).state == "queued"
        one.ray.becomes(first.id, "succeeded")
        await one.until(first, "succeeded")
        await one.accepted(third)
        assert one.ray.submitted == [(job.id, False) for job in (first, second, third)]

    at_work(one, test)


def test_a_lost_answer_submits_nothing_twice(tmp_path: Path) -> None:
    one = bench(tmp_path)
    one.ray.loses_answers = 1

    async def test() -> None:
        job = await one.add()
        await one.accepted(job)
        assert one.ray.submitted == [(job.id, False)]

    at_work(one, test)


def test_ray_may_go_away_and_come_back(tmp_path: Path) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        job = await one.add()
        await one.accepted(job)
        one.ray.is_away = True
        await asyncio.sleep(0.1)
        assert one.now(job).state == "running"
        one.ray.is_away = False
        one.ray.becomes(job.id, "succeeded")
        await one.until(job, "succeeded")

    at_work(one, test)


def test_a_job_that_cannot_be_begun_for_long_has_failed_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayward.services.jobs.runner._BEGIN_PATIENCE_S", 0.3)
    one = bench(tmp_path)

    async def test() -> None:
        first, second = await one.add(), await one.add()
        one.ray.refuses = first.id
        began = asyncio.get_running_loop().time()
        failed = await one.until(first, "failed")
        assert asyncio.get_running_loop().time() - began > 0.3
        assert failed.error == "it could not be begun for 0.3 s: no room for another process"
        await one.accepted(second)
        one.ray.refuses = None
        one.ray.becomes(second.id, "succeeded")
        await one.until(second, "succeeded")
        await one.queue.resume(one.now(first))
        await one.accepted(first)

    at_work(one, test)


@pytest.mark.parametrize(
    ("ray", "status", "expected"),
    [
        ("succeeded", "succeeded", "succeeded"),
        ("failed", "failed", "failed"),
        ("failed", None, "failed"),
        ("failed", "stopped", "interrupted"),  # somebody sent it a signal
        ("cancelled", "stopped", "cancelled"),  # `ray job stop`
        (None, "running", "interrupted"),  # the cluster is another one
        (None, "succeeded", "succeeded"),
        (None, "failed", "failed"),
        (None, None, "interrupted"),
    ],
)
def test_what_becomes_of_a_job(
    tmp_path: Path, ray: JobState | None, status: RunState | None, expected: JobState
) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        job = await one.add()
        await one.accepted(job)
        if status is not None:
            one.run_says(job, status, "E: it broke" if status == "failed" else None)
        (tmp_path / job.log).write_text("begun\nrayward: no such file\n\n")
        if ray is None:
            del one.ray.jobs[job.id]
        else:
            one.ray.becomes(job.id, ray, "Ray's own words\nand more")
        ended = await one.until(job, expected)
        assert ended.ended is not None
        broke = "E: it broke" if status else "rayward: no such file"
        assert ended.error == (broke if expected == "failed" else None)

    at_work(one, test)


def test_a_job_that_waits_is_cancelled_at_once(tmp_path: Path) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        job = await one.add()
        assert (await one.queue.cancel(job)).state == "cancelled"
        with pytest.raises(ApiError) as refused:
            await one.queue.cancel(job)
        assert refused.value.status == 409

    asyncio.run(test())


def test_a_job_that_runs_is_stopped_and_resumed_under_a_new_id(tmp_path: Path) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        job = await one.add()
        await one.accepted(job)
        one.run_says(job, "running")
        assert (await one.queue.cancel(job)).state == "cancelling"
        assert (await one.queue.cancel(job)).state == "cancelling"
        with pytest.raises(ApiError):
            await one.queue.resume(job)
        async with asyncio.timeout(10):
            while not one.ray.stopped:
                await asyncio.sleep(0.01)
        # Killed, so the run still says that it is running.
        one.ray.becomes(job.id, "cancelled")
        await one.until(job, "cancelled")
        await one.queue.resume(one.now(job))
        again = await one.accepted(job)
        assert (again.attempt, again.cancel_requested, again.ended) == (2, None, None)
        assert one.ray.submitted == [(job.id, False), (f"{job.id}-2", True)]

    at_work(one, test)


def test_what_an_earlier_attempt_said_is_not_this_ones(tmp_path: Path) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        job = await one.add()
        await one.accepted(job)
        one.run_says(job, "stopped")
        await one.queue.cancel(job)
        one.ray.becomes(job.id, "cancelled")
        await one.until(job, "cancelled")
        await one.queue.resume(one.now(job))
        await one.accepted(job)
        one.ray.becomes(f"{job.id}-2", "failed", "rayward: the data has changed")
        ended = await one.until(job, "failed")
        assert ended.error == "rayward: the data has changed"

    at_work(one, test)


def test_a_job_that_ray_cannot_place_is_cancelled_all_the_same(tmp_path: Path) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        job = await one.add()
        await one.accepted(job)
        one.ray.becomes(job.id, "queued")
        await one.queue.cancel(job)
        await one.until(job, "cancelled")
        assert job.id in one.ray.stopped

    at_work(one, test)


def test_what_succeeded_before_the_stop_has_succeeded(tmp_path: Path) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        job = await one.add()
        await one.accepted(job)
        await one.queue.cancel(job)
        one.ray.becomes(job.id, "succeeded")
        await one.until(job, "succeeded")

    at_work(one, test)


def test_a_run_that_was_cut_off_as_it_began_begins_anew(tmp_path: Path) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        job = await one.add()
        run = tmp_path / job.id
        run.mkdir()
        (run / "manifest.json").write_text("{}")
        await one.accepted(job)
        assert one.ray.submitted == [(job.id, False)]
        assert not run.exists()

    at_work(one, test)


def test_a_disk_that_fails_and_comes_back(tmp_path: Path) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        job = await one.add()
        await one.accepted(job)
        submitted = one.ray.jobs[job.id]
        assert submitted.state == "running"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Copies, "finish", _fail)
            one.ray.becomes(job.id, "succeeded")
            await asyncio.sleep(0.1)
            assert one.now(job).state == "running"
        await one.until(job, "succeeded")

    at_work(one, test)


def _fail(*_: object) -> None:
    raise OSError("no space left")


def test_a_record_that_cannot_be_read_is_a_job_that_failed(tmp_path: Path) -> None:
    for name, content in (("torn", "{"), ("copied", '{"id": "other"}'), ("-odd", "{")):
        (tmp_path / ".jobs" / name).mkdir(parents=True)
        (tmp_path / ".jobs" / name / "job.json").write_text(content)
    # A submission that was cut off before it was answered is none.
    (tmp_path / ".jobs" / "begun").mkdir()
    one = bench(tmp_path)

    async def test() -> None:
        assert {job.id for job in one.queue.all()} == {"torn", "copied"}
        for job in list(one.queue.all()):
            assert job.error == f".jobs/{job.id}/job.json cannot be read"
            for change in (one.queue.cancel, one.queue.resume):
                with pytest.raises(ApiError) as refused:
                    await change(job)
                assert refused.value.status == 409
        # Nothing else is kept from its work, and what could be mended is as it was.
        await one.accepted(await one.add())
        assert (tmp_path / ".jobs" / "torn" / "job.json").read_text() == "{"
        root = RunsRoot(str(tmp_path))
        shown = {job.id: job for job in History(root, Copies(root)).all(one.queue.all(), [])}
        torn = shown["torn"]
        assert (torn.state, torn.kind, torn.name) == ("failed", None, None)
        assert len(shown) == 3

    at_work(one, test)


def test_records_that_others_change_are_read_again(tmp_path: Path) -> None:
    keeper = bench(tmp_path)
    watcher = bench(tmp_path)

    async def test() -> None:
        job = await keeper.add(key="k")
        await watcher.queue.reload()
        assert watcher.now(job).state == "queued"
        assert watcher.queue.replay("k", "request") == job
        before = watcher.now(job)
        await watcher.queue.reload()
        assert watcher.now(job) is before
        await keeper.queue.cancel(job)
        await watcher.queue.reload()
        assert watcher.now(job).state == "cancelled"
        with pytest.raises(LeaseLost):
            await watcher.queue.resume(job)
        with pytest.raises(LeaseLost):
            await watcher.add()
        await keeper.queue.reload()
        assert keeper.now(job).state == "cancelled"
        assert len(list(keeper.queue.all())) == 1

    asyncio.run(test())


def test_a_clock_that_is_set_back_changes_no_order(tmp_path: Path) -> None:
    one = bench(tmp_path)

    async def test() -> None:
        first = await one.add()
        future = datetime.now(UTC) + timedelta(hours=1)
        assert await one.queue.change(first, queued=future)
        second = await one.add()
        assert [job.id for job in one.queue.next(2)] == [first.id, second.id]
        # Who looked before the change may not write what it saw.
        assert not await one.queue.change(first, state="failed")
        assert one.now(first).state == "queued"

    asyncio.run(test())
