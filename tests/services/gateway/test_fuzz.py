"""Requests that a machine made up: none is answered with 5xx but 503.

Answers are also held against the OpenAPI document: their status, their type, their shape.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving import Served

# Of each operation; `RAYWARD_TEST_LONG=1` for thousands of requests.
EXAMPLES = 150 if os.environ.get("RAYWARD_TEST_LONG") == "1" else 30
_CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
_SETTINGS = settings(
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", autouse=True)
def no_job_is_left(served: Served) -> Iterator[None]:
    yield
    with served.client("admin") as client:
        for job in client.get("/v1/jobs", params={"limit": 100}).json()["jobs"]:
            if job["state"] in ("queued", "running"):
                client.post(f"/v1/jobs/{job['id']}/cancel")


@pytest.mark.slow
def test_no_request_is_a_server_error(served: Served) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    key = {"Authorization": f"Bearer {served.key('admin')}"}
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json", headers=key)

    def ask(case: schemathesis.Case) -> None:
        if case.path in ("/v1/chat/completions", "/v1/completions"):
            shorten(case)
        if case.path == "/v1/jobs" and case.method == "POST":
            make_unrunnable(case)
        answer = case.call(headers=key, timeout=120)
        seen[case.path, answer.status_code] += 1
        assert answer.status_code < 500 or answer.status_code == 503, answer.text[:500]
        case.validate_response(answer, checks=_CHECKS)

    for operation in schema.get_all_operations():
        _SETTINGS(given(case=operation.ok().as_strategy())(ask))()
    assert sum(seen.values()) > 13 * EXAMPLES
    # Nonsense alone would prove little: the service has also answered.
    answered = {path for path, status in seen if status == 200}
    assert answered >= {"/v1/score", "/predict", "/classify", "/v1/jobs", "/v1/models"}, seen


def shorten(case: schemathesis.Case) -> None:
    """An answer of five hundred tokens says no more than one of four."""
    if not isinstance(case.body, dict):
        return
    for name in ("max_tokens", "max_completion_tokens"):
        asked = case.body.get(name)
        if isinstance(asked, int) and asked > 4:
            case.body[name] = 4
    case.body.setdefault("max_tokens", 4)


def make_unrunnable(case: schemathesis.Case) -> None:
    """A recipe that is right would run, and train whatever a machine has made up."""
    if isinstance(case.body, dict) and isinstance(case.body.get("config"), dict):
        case.body["config"]["model"] = {"path": "/nowhere"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = {
    "/get_reward": ("query", "prompts", "labels"),
    "/classify": ("model", "input", "use_activation", "activation", "truncate_prompt_tokens"),
    "/v1/embeddings": ("model", "input", "encoding_format"),
    "/predict": ("inputs", "raw_scores", "truncate"),
    "/v1/score": ("items", "models", "deterministic", "truncate"),
}


@pytest.mark.slow
@pytest.mark.parametrize("path", FIELDS)
def test_drop_ins_take_any_body(served: Served, path: str) -> None:
    """Bodies that have the right names and anything below them."""
    bodies = st.fixed_dictionaries({}, optional={name: JSON for name in FIELDS[path]})

    @_SETTINGS
    @given(body=bodies)
    def ask(client: httpx.Client, body: dict[str, Any]) -> None:
        import json

        # NaN and infinities too, which JSON does not know and some clients send.
        answer = client.post(
            path, content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code < 500 or answer.status_code == 503, answer.text[:500]
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]

    with served.client("score") as client:
        ask(client)


@pytest.mark.slow
def test_bytes_that_are_no_json(served: Served) -> None:
    @settings(_SETTINGS, max_examples=2 * EXAMPLES)
    @given(raw=st.binary(max_size=200))
    def ask(raw: bytes) -> None:
        answer = client.post("/v1/score", content=raw, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["type"] == "invalid_request_error"

    with served.client("score") as client:
        ask()
