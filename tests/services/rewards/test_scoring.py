"""What the gateway does with a reward model that does not answer in time."""

import asyncio
import time
from typing import Any

import httpx

from rayward.cluster.config.serving import (
    HttpSettings,
    KeySettings,
    RewardServiceSettings,
    ServedRewardModel,
    ServingSettings,
)
from rayward.services.gateway.api import make_api
from rayward.services.http.access import Access
from rayward.services.http.backends import Backends
from tests.loopback import listening


class Silent:
    """A deployment's handle whose calls never come back."""

    def __init__(self) -> None:
        self.answer = self
        self.calls: list[asyncio.Future[Any]] = []

    def remote(self, *_: object) -> asyncio.Future[Any]:
        self.calls.append(asyncio.get_running_loop().create_future())
        return self.calls[-1]


def test_a_request_ends_in_time_whatever_its_headers_say() -> None:
    settings = ServingSettings(
        http=HttpSettings(request_timeout_s=0.3),
        reward=RewardServiceSettings(safety=ServedRewardModel(path="m")),
    )
    handle = Silent()
    backends = Backends(settings, {"safety": handle}, None, None)  # type: ignore[dict-item]
    headers = {"x-request-timeout-seconds": "1000", "x-request-disconnect-disabled": "?1"}
    with listening(make_api(backends, Access(KeySettings()))) as url:
        began = time.monotonic()
        answer = httpx.post(
            f"{url}/v1/score", json={"items": [{"text": "a"}]}, headers=headers, timeout=20
        )
        took = time.monotonic() - began
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json()["error"]["type"] == "overloaded_error"
    assert 0.3 <= took < 60
    assert [call.cancelled() for call in handle.calls] == [True]
