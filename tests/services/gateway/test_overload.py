"""Twice what the service can do, for a while; and a replica that dies under load."""

import asyncio
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.serving import Served, serving, write_models

# `RAYWARD_TEST_LONG=1` for the whole minute that is promised.
IS_LONG = os.environ.get("RAYWARD_TEST_LONG") == "1"
SECONDS, WARM_UP_S, UNDER_LOAD_S = (60.0, 10.0, 40.0) if IS_LONG else (15.0, 5.0, 20.0)
TEXTS = [f"item {n}: " + "word " * (n % 60) for n in range(200)]


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory, preloading: None) -> Iterator[Served]:
    """Reward models alone, with short queues, so that two cores can overload them."""
    folder = tmp_path_factory.mktemp("scoring")
    models = write_models(folder / "models")
    document = {
        "reward": {
            "safety": {"path": str(models / "safety"), "max_queued_items": 64},
            "helpfulness": {"path": str(models / "helpfulness"), "max_queued_items": 64},
            "policy": str(models / "policy"),
        },
        "http": {"max_requests_in_work": 48},
    }
    with serving(folder, document, forked=True) as service:
        yield service


async def ask(session: aiohttp.ClientSession, served: Served, n: int) -> tuple[int, float | None]:
    """Status, and the safety logit where there is one; no answer within 70 s is a hang."""
    body = {"items": [{"text": TEXTS[n % len(TEXTS)]}]}
    timeout = aiohttp.ClientTimeout(total=70)
    async with session.post(f"{served.url}/v1/score", json=body, timeout=timeout) as answer:
        if answer.status != 200:
            await answer.read()
            if answer.status == 503:
                assert int(answer.headers["Retry-After"]) >= 1
            return answer.status, None
        found = await answer.json()
        return 200, found["results"][0]["scores"]["safety"]["logit"]


async def state(session: aiohttp.ClientSession, served: Served) -> tuple[int, int, str]:
    """The statuses of /health and /ready, and what is said to be missing."""
    async with session.get(f"{served.url}/health") as health:
        pass
    async with session.get(f"{served.url}/ready") as ready:
        body = await ready.json()
    reason = body["error"]["message"] if ready.status == 503 else ""
    return health.status, ready.status, reason


async def right_scores(served: Served) -> list[float]:
    async with aiohttp.ClientSession() as session:
        found = [await ask(session, served, n) for n in range(len(TEXTS))]
    scores = [score for _, score in found if score is not None]
    assert len(scores) == len(TEXTS)
    return scores


async def capacity(served: Served, clients: int, seconds: float) -> float:
    """Answers a second that so many clients get who ask again as soon as they are answered."""
    done = 0
    end = time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession, first: int) -> None:
        nonlocal done
        n = first
        while time.monotonic() < end:
            status, _ = await ask(session, served, n)
            done += status == 200
            n += clients

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, n) for n in range(clients)))
    return done / seconds


async def offered(
    served: Served, rate: float, seconds: float, right: list[float]
) -> tuple[Counter[int], list[float]]:
    """Ask at a rate whatever the answers; count them by status, and find wrong ones."""
    counts: Counter[int] = Counter()
    took: list[float] = []

    async def one(session: aiohttp.ClientSession, n: int) -> None:
        began = time.monotonic()
        status, score = await ask(session, served, n)
        counts[status] += 1
        took.append(time.monotonic() - began)
        if score is not None:
            assert abs(score - right[n % len(right)]) <= 1e-6

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as tasks:
        began = time.monotonic()
        for n in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))
            tasks.create_task(one(session, n))
    return counts, took


def memory(served: Served) -> int:
    """Resident bytes of all replicas."""
    return sum(one.memory_info().rss for one in served.processes("ray::ServeReplica"))


@pytest.mark.slow
def test_twice_the_capacity(scoring: Served) -> None:
    right = asyncio.run(right_scores(scoring))
    able = asyncio.run(capacity(scoring, 32, 5.0))
    asyncio.run(offered(scoring, 2 * able, WARM_UP_S, right))
    before = memory(scoring)
    counts, took = asyncio.run(offered(scoring, 2 * able, SECONDS, right))
    assert set(counts) == {200, 503}
    assert sum(counts.values()) == int(2 * able * SECONDS)
    # It is no service if it says 503 to everyone.
    assert counts[200] > 0.3 * able * SECONDS
    assert statistics.quantiles(took, n=100)[98] < 30
    assert memory(scoring) < 1.1 * before + 64 * 2**20


@pytest.mark.slow
def test_a_replica_that_dies_under_load(scoring: Served, tmp_path: Path) -> None:
    right = asyncio.run(right_scores(scoring))
    (victim,) = scoring.processes("ray::ServeReplica:rayward:safety")
    said: list[tuple[int, int, str]] = []

    async def watched() -> None:
        """Until the service has said that it is not ready, and then that it is."""
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while not any(ready == 503 for _, ready, _ in said) or said[-1][1] != 200:
                said.append(await state(session, scoring))
                await asyncio.sleep(0.25)

    async def kill_meanwhile() -> tuple[Counter[int], float]:
        load = asyncio.create_task(offered(scoring, 20.0, UNDER_LOAD_S, right))
        await asyncio.sleep(5)
        os.kill(victim.pid, signal.SIGKILL)
        killed = time.monotonic()
        watch = asyncio.create_task(watched())
        await asyncio.sleep(0.5)
        async with aiohttp.ClientSession() as session:
            while (await ask(session, scoring, 0))[0] != 200:
                await asyncio.sleep(0.25)
            back = time.monotonic() - killed
        await watch
        counts, _ = await load
        return counts, back

    counts, back = asyncio.run(kill_meanwhile())
    assert set(counts) <= {200, 503}
    assert counts[200] > 0
    assert back < 30
    # The gateway stands all the time, and says what is missing.
    assert {health for health, _, _ in said} == {200}
    assert {reason for _, ready, reason in said if ready == 503} == {"no replica stands of: safety"}
    assert asyncio.run(right_scores(scoring)) == pytest.approx(right, abs=1e-6)
