"""Thousands of requests that a machine made up: none is answered with 5xx but 503.

Answers are also held against the OpenAPI document: their status, their type, their shape.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS
from schemathesis.schemas import BaseSchema

from tests.serving import Served

EXAMPLES = 150
_CHECKS = [
    CHECKS.get_one(name)
    for name in (
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
]
_SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
seen: Counter[tuple[str, int]] = Counter()


@pytest.fixture(scope="module")
def api(served: Served) -> BaseSchema:
    with served.client("admin") as client:
        document = client.get("/openapi.json").json()
    return schemathesis.openapi.from_dict(document).configure(base_url=served.url)


schema = schemathesis.pytest.from_fixture("api")


@pytest.fixture(scope="module", autouse=True)
def no_job_is_left(served: Served) -> Iterator[None]:
    yield
    with served.client("admin") as client:
        for job in client.get("/v1/jobs", params={"limit": 1000}).json()["jobs"]:
            if job["state"] in ("queued", "running"):
                client.post(f"/v1/jobs/{job['id']}/cancel")


@pytest.mark.slow
@schema.parametrize()
@_SETTINGS
def test_no_request_is_a_server_error(case: schemathesis.Case, served: Served) -> None:
    if case.path in ("/v1/chat/completions", "/v1/completions") and isinstance(case.body, dict):
        # An answer of five hundred tokens says no more than one of four.
        for name in ("max_tokens", "max_completion_tokens"):
            asked = case.body.get(name, 4)
            if isinstance(asked, int) and asked > 4:
                case.body[name] = 4
        case.body.setdefault("max_tokens", 4)
    answer = case.call(headers={"Authorization": f"Bearer {served.key('admin')}"}, timeout=120)
    seen[case.path, answer.status_code] += 1
    assert answer.status_code < 500 or answer.status_code == 503, answer.text[:500]
    case.validate_response(answer, checks=_CHECKS)


@pytest.mark.slow
def test_that_was_thousands() -> None:
    if not seen:
        pytest.skip("the test above did not run")
    assert sum(seen.values()) > 2000
    # Nonsense alone would prove little: the service has also answered.
    assert {path for path, status in seen if status == 200} >= {
        "/v1/score",
        "/predict",
        "/classify",
    }


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
@settings(_SETTINGS, max_examples=300)
@given(raw=st.binary(max_size=200))
def test_bytes_that_are_no_json(served: Served, raw: bytes) -> None:
    with served.client("score") as client:
        answer = client.post("/v1/score", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["type"] == "invalid_request_error"
