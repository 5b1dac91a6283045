"""Whether the service stands, and what Prometheus reads of it."""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from ray.exceptions import RayError

from rayward.cluster.config.serving import JobServiceSettings, KeySettings, ServingSettings
from rayward.services.gateway import health as health_routes
from rayward.services.http import prometheus
from rayward.services.http.access import Access
from rayward.services.http.backends import Backends
from rayward.services.http.errors import ErrorBody, handle_errors
from rayward.services.http.keys import create_key
from rayward.services.http.prometheus import Measured
from tests.loopback import listening
from tests.serving import Served

# Ray's agent shows a new number after about ten seconds.
_PATIENCE_S = 60.0


def make_app(keys: KeySettings) -> FastAPI:
    app = FastAPI()
    app.state.access = Access(keys)
    app.add_middleware(Measured)
    settings = ServingSettings(jobs=JobServiceSettings())
    app.include_router(health_routes.health_routes(Backends(settings, {}, None, None)))

    @app.get("/v1/jobs/{job_id}")
    async def job(job_id: str) -> str:
        return job_id

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("on purpose")

    handle_errors(app, 1, {})
    return app


@pytest.fixture
def keyless() -> Iterator[str]:
    with listening(make_app(KeySettings())) as url:
        yield url


def test_health_says_what_is_served(tmp_path: Path) -> None:
    create_key(tmp_path / "keys.json", ["score"])
    with listening(make_app(KeySettings(path=str(tmp_path / "keys.json")))) as url:
        answer = httpx.get(f"{url}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "serves": []})


def test_ready_says_which_part_is_missing(keyless: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the gateway itself is well: a part that is replaced is no reason to replace it, too."""
    answers: list[list[str] | Exception] = [[], ["safety", "policy"], RayError("gone")]
    asked = []

    def missing() -> list[str]:
        asked.append(time.monotonic())
        answer = answers[len(asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(health_routes, "missing_parts", missing)
    for _ in range(5):
        answer = httpx.get(f"{keyless}/ready")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "serves": []})
    # Who asks often is told what is known, for seconds.
    assert len(asked) == 1
    monkeypatch.setattr(health_routes, "_KNOWN_FOR_S", 0.0)
    for message in ("safety, policy", "RayError"):
        answer = httpx.get(f"{keyless}/ready")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert message in ErrorBody.model_validate(answer.json()).error.message
        assert httpx.get(f"{keyless}/health").status_code == 200


def test_a_controller_that_does_not_answer_is_waited_for_once(
    keyless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    there = threading.Event()

    def missing() -> list[str]:
        asked.append(1)
        there.wait(30)
        return []

    monkeypatch.setattr(health_routes, "missing_parts", missing)
    monkeypatch.setattr(health_routes, "_KNOWN_FOR_S", 0.0)
    monkeypatch.setattr(health_routes, "_CONTROLLER_TIMEOUT_S", 0.2)
    for _ in range(3):
        answer = httpx.get(f"{keyless}/ready")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert len(asked) == 1
    there.set()
    until = time.monotonic() + 10
    while httpx.get(f"{keyless}/ready").status_code != 200:
        assert time.monotonic() < until


def test_without_a_service_nothing_is_ready(keyless: str) -> None:
    assert httpx.get(f"{keyless}/ready").status_code == 503


def test_a_service_is_ready_and_says_so_without_a_key(served: Served) -> None:
    answer = httpx.get(f"{served.url}/ready", timeout=30)
    assert (answer.status_code, answer.json()["serves"]) == (200, ["reward", "policy", "jobs"])
    document = httpx.get(f"{served.url}/openapi.json", timeout=30).json()
    assert document["paths"]["/ready"]["get"]["responses"].keys() == {"200", "503"}


def test_only_an_admin_reads_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, scorer = create_key(path, ["score", "generate", "jobs:read", "jobs:write"])
    with listening(make_app(KeySettings(path=str(path)))) as url:
        assert httpx.get(f"{url}/metrics").status_code == 401
        headers = {"Authorization": f"Bearer {scorer}"}
        assert httpx.get(f"{url}/metrics", headers=headers).status_code == 403


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:9/metrics"])
def test_without_an_agent_there_are_no_numbers(
    keyless: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_routes, "metrics_address", lambda: address)
    answer = httpx.get(f"{keyless}/metrics")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    ErrorBody.model_validate(answer.json())


def test_of_a_nodes_numbers_the_services_own_are_shown() -> None:
    text = (
        '# HELP ray_node_cpu CPUs\n# TYPE ray_node_cpu gauge\nray_node_cpu{a="ray_serve_"} 2.0\n'
        '# HELP ray_serve_x Requests\n# TYPE ray_serve_x counter\nray_serve_x{r="/a b"} 1.0\n\n'
        'ray_rayward_y_bucket{le="0.1"} 3.0\nray_rayward_y_sum 0.2\n#\n'
    )
    assert health_routes.shown(text) == (
        '# HELP ray_serve_x Requests\n# TYPE ray_serve_x counter\nray_serve_x{r="/a b"} 1.0\n'
        'ray_rayward_y_bucket{le="0.1"} 3.0\nray_rayward_y_sum 0.2\n'
    )


def numbers(text: str) -> dict[str, float]:
    """Samples by name and the labels that are ours, over all processes that tell them."""
    found: dict[str, float] = defaultdict(float)
    for line in text.splitlines():
        sample = re.fullmatch(r"ray_rayward_(\w+)\{(.*)\} (\S+)", line)
        if sample:
            labels = re.findall(r'(route|status|model|le)="([^"]*)"', sample[2])
            shown = ",".join(f"{name}={value}" for name, value in sorted(labels))
            found[f"{sample[1]} {shown}".strip()] += float(sample[3])
    return found


def read_after(client: httpx.Client, gauge: str) -> dict[str, float]:
    """The numbers once they show what this process has measured up to now.

    Args:
        gauge: a name that nobody else sets the queue of.
    """
    prometheus.set_queue(gauge, 5)
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        found = numbers(client.get("/metrics").raise_for_status().text)
        if f"queue_items model={gauge}" in found:
            return found
        time.sleep(0.5)
    raise TimeoutError(gauge)


def test_prometheus_reads_what_was_measured(ray_session: None, keyless: str) -> None:
    # Tests before this one have measured, too, in the same cluster.
    with httpx.Client(base_url=keyless) as client:
        prometheus.count_from_zero(gate=True, guard=True)
        before = read_after(client, "before")
        # There before anything is counted, and no count of their own.
        assert {"gate_under_total", "gate_answers_total", "guard_refused_total"} <= before.keys()
        assert {f"access_refused_total status={n}" for n in (401, 403, 429)} <= before.keys()
        for job in ("one", "two", "three"):
            assert client.get(f"/v1/jobs/{job}").status_code == 200
        assert client.get("/nowhere/secret").status_code == 404
        assert client.get("/broken", headers={"Connection": "close"}).status_code == 500
        assert client.delete("/v1/jobs/one").status_code == 405
        assert client.get("/health", headers={"X-Forwarded-For": "x"}).status_code == 200
        assert client.get("/metrics", headers={"X-Forwarded-For": "x"}).status_code == 403
        prometheus.observe_scores("safety", [0.0, 0.03, 0.15, 0.97])
        prometheus.observe_batch("safety", 4, 300)
        prometheus.count_gate(2, 4)
        prometheus.count_gate(0, 1)
        prometheus.count_guard(0, 0)
        prometheus.count_guard(1, 3)
        found = read_after(client, "after")
    expected = {
        "http_requests_total route=/v1/jobs/{job_id},status=200": 3,
        "http_requests_total route=/v1/jobs/{job_id},status=405": 1,
        "http_requests_total route=none,status=404": 1,
        "http_requests_total route=/broken,status=500": 1,
        "http_requests_total route=/metrics,status=403": 1,
        "http_request_seconds_count route=/v1/jobs/{job_id}": 4,
        "access_refused_total status=403": 1,
        "score_probability_bucket le=0.01,model=safety": 1,
        "score_probability_bucket le=0.05,model=safety": 2,
        "score_probability_bucket le=0.15,model=safety": 3,
        "score_probability_bucket le=0.95,model=safety": 3,
        "score_probability_bucket le=0.99,model=safety": 4,
        "batch_items_count model=safety": 1,
        "batch_tokens_bucket le=256.0,model=safety": 0,
        "batch_tokens_bucket le=512.0,model=safety": 1,
        "queue_items model=after": 5,
        "gate_answers_total": 5,
        "gate_under_total": 2,
        "guard_answers_total": 3,
        "guard_refused_total": 1,
    }
    assert {name: found[name] - before.get(name, 0) for name in expected} == expected
    assert not [name for name in found if "one" in name.split("=")[-1].split("/")]
    assert not [name for name in found if "secret" in name]
