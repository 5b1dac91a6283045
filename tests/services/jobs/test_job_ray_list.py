"""Listing Ray's jobs where Ray answers late, or not at all."""

import asyncio
import threading
from datetime import UTC, datetime

import pytest

from rayward.services.jobs.ray_jobs import RayAway, RayJob, RayJobList

JOB = RayJob("one", "running", "rayward run", None, datetime.now(UTC), None)


class Slow:
    """A dashboard that takes a question and leaves it until it is told to go on."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.asked = 0
        self.fails = False

    def all(self) -> list[RayJob]:
        self.asked += 1
        self.goes_on.wait(10)
        if self.fails:
            raise RayAway("nobody answers")
        return [JOB]


def test_one_thread_at_a_time_waits_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayward.services.jobs.ray_jobs._LIST_TIMEOUT_S", 0.2)
    monkeypatch.setattr("rayward.services.jobs.ray_jobs._LIST_KEPT_S", 0.05)
    ray = Slow()
    jobs = RayJobList(ray)  # type: ignore[arg-type]

    async def test() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(5):
            assert await asyncio.gather(*(jobs.get() for _ in range(10))) == [[]] * 10
        # Who asks while it hangs does not wait for it anew.
        assert loop.time() - began < 1
        assert ray.asked == 1
        ray.goes_on.set()
        assert await until_it_says(jobs, [JOB]) == [JOB]
        # What was said last is told while nobody answers.
        ray.fails = True
        await asyncio.sleep(0.1)
        asked = ray.asked
        assert await jobs.get() == [JOB]
        assert ray.asked == asked + 1
        ray.fails = False
        await asyncio.sleep(0.1)
        assert await jobs.get() == [JOB]

    asyncio.run(test())


async def until_it_says(jobs: RayJobList, expected: list[RayJob]) -> list[RayJob]:
    async with asyncio.timeout(5):
        while (found := await jobs.get()) != expected:
            await asyncio.sleep(0.02)
    return found
