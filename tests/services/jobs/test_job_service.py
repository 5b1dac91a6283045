"""Jobs over HTTP, with a real Ray behind: from submission to the end, cut off and gone on with."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import read_metrics
from rayward.services.jobs.ray_jobs import RAYWARD
from rayward.services.jobs.schemas import FINAL
from tests.serving import Served, rayward

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {
        "tiny_world": {
            "demonstrations": 400,
            "safety_demonstrations": 42,
            "seed_prompts": 12,
            "train_prompts": 84,
            "safety_pairs": 100,
            "helpfulness_pairs": 100,
            "held_out_adversarial": 21,
            "held_out_benign": 10,
            "held_out_borderline": 6,
            "held_out_pairs": 40,
            "validation_adversarial": 21,
            "validation_benign": 6,
        }
    },
    "model": {"make": {"hidden_size": 64, "heads": 2, "layers": 2, "vocab_size": 1024}},
    "stages": ["reward_safety"],
    "reward_safety": {"epochs": 100, "batch_size": 4, "max_steps": 1000},
}
# Long enough to be cut off in the middle.
SHORTER: dict[str, Any] = {"seed": 1, "reward_safety": {**SMALL["reward_safety"], "max_steps": 300}}
Submit = Callable[..., str]


@pytest.fixture(scope="module")
def jobs(served: Served) -> Iterator[httpx.Client]:
    with served.client("jobs:read", "jobs:write") as client:
        yield client


@pytest.fixture
def submit(jobs: httpx.Client) -> Iterator[Submit]:
    """Submits; whatever is left of it afterwards is cancelled."""
    submitted: list[str] = []

    def send(**changes: object) -> str:
        body = {"kind": "stage", "config": {**SMALL, **changes}}
        answer = jobs.post("/v1/jobs", json=body)
        assert answer.status_code == 201, answer.text
        submitted.append(answer.json()["id"])
        return submitted[-1]

    yield send
    for job in submitted:
        if jobs.get(f"/v1/jobs/{job}").json()["state"] not in FINAL:
            jobs.post(f"/v1/jobs/{job}/cancel")
            wait_for(jobs, job, *FINAL)


def wait_for(jobs: httpx.Client, job: str, *states: str, timeout_s: float = 120) -> float:
    """Wait until a job is in one of some states; how long it took, in seconds."""
    began = time.monotonic()
    while (found := _job(jobs, job)).get("state") not in states:
        assert found.get("state") not in FINAL, found
        assert time.monotonic() - began < timeout_s, found
        time.sleep(0.2)
    return time.monotonic() - began


def _job(jobs: httpx.Client, job: str) -> dict[str, Any]:
    answer = jobs.get(f"/v1/jobs/{job}")
    # A busy machine may be short of time: the client's own commands ask again, too.
    assert answer.status_code in (200, 503), answer.text
    found: dict[str, Any] = answer.json()
    return found


def events(lines: Iterator[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kind, id and data of each event of a stream."""
    event: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line and name:
            event[name] = value
        elif "data" in event:
            yield event["event"], event["id"], json.loads(event["data"])
            event = {}


@pytest.mark.slow
def test_a_job_is_cancelled_and_gone_on_with_and_its_events_are_whole(
    jobs: httpx.Client, submit: Submit, served: Served
) -> None:
    job = submit(**SHORTER)
    told: list[tuple[str, str, dict[str, Any]]] = []
    with jobs.stream("GET", f"/v1/jobs/{job}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for event in events(stream.iter_lines()):
            told.append(event)
            if event[0] == "metrics":
                break
    # Cut off here, in the middle of a job; what it went on to do follows.
    cancelled = jobs.post(f"/v1/jobs/{job}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelling")
    assert wait_for(jobs, job, "cancelled") < 15
    run = RunDirectory(served.runs_root / job)
    assert run.stage_result("reward_safety") is None
    done = len(read_metrics(run.metrics_path))
    assert 0 < done < 300
    assert jobs.post(f"/v1/jobs/{job}/cancel").status_code == 409

    resumed = jobs.post(f"/v1/jobs/{job}/resume").json()
    assert (resumed["attempt"], resumed["ended"]) == (2, None)
    while True:
        with jobs.stream(
            "GET", f"/v1/jobs/{job}/events", headers={"Last-Event-ID": told[-1][1]}
        ) as stream:
            told += events(stream.iter_lines())
        if told[-1][0] == "state" and told[-1][2]["state"] in FINAL:
            break
    assert told[-1][2] == {
        "state": "succeeded",
        "stage": None,
        "stages_done": ["reward_safety"],
        "error": None,
    }
    assert {"queued", "running"} <= {data["state"] for kind, _, data in told if kind == "state"}
    # Steps behind the checkpoint were taken back and done again; what stands is told once.
    resets = [place for place, (kind, _, _) in enumerate(told) if kind == "reset"]
    standing = told[resets[-1] :] if resets else told
    steps = [data["step"] for kind, _, data in standing if kind == "metrics"]
    assert steps == [row["step"] for row in read_metrics(run.metrics_path)] == [*range(1, 301)]

    detail = jobs.get(f"/v1/jobs/{job}").json()
    assert detail["state"] == "succeeded"
    assert detail["kind"] == "stage"
    assert parse_recipe(detail["config"]) == run.recipe() == parse_recipe({**SMALL, **SHORTER})
    assert run.manifest()["resumed"]
    said, offset = "", 0
    while True:
        page = jobs.get(f"/v1/jobs/{job}/logs", params={"offset": offset, "limit": 100}).json()
        said, offset = said + page["text"], page["next_offset"]
        if page["complete"]:
            break
    assert said == (served.runs_root / ".jobs" / job / "log.txt").read_bytes().decode()
    assert f"report: {run.report_path}" in said
    rows, offset = [], 0
    while True:
        page = jobs.get(
            f"/v1/jobs/{job}/metrics",
            params={"offset": offset, "limit": 100, "stage": "reward_safety"},
        ).json()
        rows += page["rows"]
        if page["next_offset"] == offset:
            break
        offset = page["next_offset"]
    assert rows == read_metrics(run.metrics_path)
    assert jobs.post(f"/v1/jobs/{job}/resume").status_code == 409


def test_fifty_at_once_lose_none(jobs: httpx.Client, submit: Submit, served: Served) -> None:
    # Ten of them are one request, sent ten times; the longest runs first, and the others wait.
    first = submit(seed=2)
    keys = [f"fifty-{max(number, 9)}-{first}" for number in range(50)]

    def send(number: int) -> httpx.Response:
        body = {"kind": "recipe", "config": {**SMALL, "seed": max(number, 9)}}
        return jobs.post("/v1/jobs", json=body, headers={"Idempotency-Key": keys[number]})

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(send, range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201] * 41
    ids = {answer.json()["id"] for answer in answers}
    assert len({answer.json()["id"] for answer in answers[:10]}) == 1
    assert len(ids) == 41
    replays = [answer for answer in answers if answer.headers.get("Idempotency-Replayed")]
    assert len(replays) == 9
    listed, after = [], None
    while True:
        page = jobs.get("/v1/jobs", params={"limit": 15, **({"after": after} if after else {})})
        listed += [job["id"] for job in page.json()["jobs"]]
        after = page.json()["next"]
        if after is None:
            break
    assert len(set(listed)) == len(listed)
    assert ids < set(listed)
    assert all((served.runs_root / ".jobs" / job / "job.json").is_file() for job in ids)
    # The replica dies, and its successor knows them all.
    kill_replica(served)
    again = when_back(lambda: send(49))
    assert (again.status_code, again.json()["id"]) == (200, answers[49].json()["id"])
    other = jobs.post(
        "/v1/jobs",
        json={"kind": "recipe", "config": SMALL},
        headers={"Idempotency-Key": keys[0]},
    )
    assert (other.status_code, other.json()["error"]["param"]) == (409, "Idempotency-Key")
    for job in ids:
        assert jobs.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert jobs.get(f"/v1/jobs/{first}").json()["state"] in (
        "running",
        "succeeded",
    )
    page = jobs.get("/v1/jobs", params={"state": "queued"}).json()
    assert not ids & {job["id"] for job in page["jobs"]}


def test_a_job_of_rays_own_command_is_listed(jobs: httpx.Client, served: Served) -> None:
    command = [RAYWARD, "run", "nowhere.yaml", "--out", "elsewhere"]
    done = subprocess.run(
        [Path(RAYWARD).with_name("ray"), "job", "submit", "--", *command],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_ADDRESS": address_of(served)},
        capture_output=True,
        text=True,
        check=False,
    )
    (name,) = set(re.findall(r"raysubmit_\w+", done.stdout + done.stderr))
    time.sleep(1.1)  # how old the list may be
    (job,) = [one for one in jobs.get("/v1/jobs").json()["jobs"] if one["id"] == name]
    assert (job["origin"], job["state"], job["run"]) == ("ray", "failed", None)
    page = jobs.get(f"/v1/jobs/{name}/logs").json()
    assert "rayward: recipe: got 'nowhere.yaml'" in page["text"]
    assert page["complete"]
    assert jobs.get(f"/v1/jobs/{name}/metrics").json()["rows"] == []
    for action in ("cancel", "resume"):
        refused = jobs.post(f"/v1/jobs/{name}/{action}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_ours")
    with jobs.stream("GET", f"/v1/jobs/{name}/events") as stream:
        assert [data["state"] for _, _, data in events(stream.iter_lines())] == ["failed"]


def test_idempotency_keys_belong_to_whoever_asks(served: Served) -> None:
    body = {"kind": "recipe", "config": SMALL}
    headers = {"Idempotency-Key": "mine"}
    found = []
    for scopes in (("jobs:read", "jobs:write"), ("jobs:write", "jobs:read")):
        with served.client(*scopes) as client:
            answers = [client.post("/v1/jobs", json=body, headers=headers) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [201, 200]
            assert len({answer.json()["id"] for answer in answers}) == 1
            found.append(answers[0].json()["id"])
            client.post(f"/v1/jobs/{found[-1]}/cancel")
    assert found[0] != found[1]


def test_a_stream_ends_with_its_key(jobs: httpx.Client, submit: Submit, served: Served) -> None:
    file = str(served.folder / "keys.json")
    before = {
        line.split("\t")[0] for line in rayward("keys", "list", "--file", file).stdout.splitlines()
    }
    made = rayward("keys", "create", "--scope", "jobs:read", "--file", file).stdout.strip()
    listed = rayward("keys", "list", "--file", file).stdout.splitlines()
    (name,) = {line.split("\t")[0] for line in listed} - before
    job = submit(seed=3)
    headers = {"Authorization": f"Bearer {made}"}
    with (
        httpx.Client(base_url=served.url, headers=headers, timeout=30) as reader,
        reader.stream("GET", f"/v1/jobs/{job}/events") as stream,
    ):
        told = events(stream.iter_lines())
        assert next(told)[0] == "state"
        rayward("keys", "revoke", name, "--file", file)
        began = time.monotonic()
        for _ in told:
            assert time.monotonic() - began < 60
        assert time.monotonic() - began < 60
    assert jobs.get(f"/v1/jobs/{job}").json()["state"] not in FINAL


def test_what_is_wrong_is_said(jobs: httpx.Client, served: Served) -> None:
    wrong = jobs.post("/v1/jobs", json={"kind": "recipe", "config": {**SMALL, "seed": -1}})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "config.seed")
    body = {"kind": "recipe", "config": SMALL}
    for extra in ("entrypoint", "env", "runtime_env"):
        refused = jobs.post("/v1/jobs", json={**body, extra: "rm -rf /"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, extra)
    for path in ("", "/logs", "/events", "/metrics", "/samples?stage=sft"):
        assert jobs.get(f"/v1/jobs/no-such-job{path}").status_code == 404
        assert jobs.get(f"/v1/jobs/..%2f..%2fetc{path}").status_code in (404, 422)
        assert jobs.get(f"/v1/jobs/.jobs{path}").status_code == 422
    refused = jobs.get("/v1/jobs/no-such-job/events", headers={"Last-Event-ID": "x"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "Last-Event-ID")
    assert jobs.get("/v1/jobs", params={"after": "no-such-job"}).status_code == 422
    with served.client("jobs:read") as reader:
        assert reader.post("/v1/jobs", json=body).status_code == 403
        assert reader.post("/v1/jobs/no-such-job/cancel").status_code == 403


def address_of(served: Served) -> str:
    """The address of a service's Ray."""
    (option,) = [one for one in served.raylet.cmdline() if one.startswith("--gcs-address=")]
    return option.partition("=")[2]


def kill_replica(served: Served) -> None:
    (replica,) = served.processes("ray::ServeReplica:rayward:jobs")
    replica.kill()


def when_back(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """The first answer that is not 503; within 60 seconds there must be one."""
    deadline = time.monotonic() + 60
    while (answer := ask()).status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return answer
