"""Reward functions as TRL and verl call them."""

import asyncio
import inspect
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest

from cluster.errors import InputError, UnscoredError
from services.reward_shims import KEY_VARIABLE, trl_reward, verl_compute_score
from tests.serving import Served

ASKED = [{"role": "user", "content": "who?"}]


def rewards(served: Served, *items: dict[str, Any]) -> list[dict[str, Any]]:
    with served.client("score") as client:
        answer = client.post("/v1/score", json={"items": items})
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def item(response: str, **more: object) -> dict[str, Any]:
    return {"messages": ASKED, "response": response, **more}


def test_trl_rewards_texts_and_messages(served: Served) -> None:
    """`_calculate_rewards` of TRL's GRPO trainer awaits functions that are coroutines, and calls
    them by keyword with the data set's columns and things of its own."""
    reward = trl_reward(served.url, served.key("score"))
    assert inspect.iscoroutinefunction(reward)
    assert isinstance(reward.__name__, str)
    own = {"completion_ids": [[1], [2]], "trainer_state": None, "log_metric": None}
    expected = [one["reward"] for one in rewards(served, item("me."), item("them"))]
    texts = asyncio.run(reward(prompts=["who?"] * 2, completions=["me.", "them"], **own))
    assert texts == pytest.approx(expected, abs=1e-6)
    assert all(type(one) is float for one in texts)
    spoken = [[{"role": "assistant", "content": text}] for text in ("me.", "them")]
    assert asyncio.run(reward(prompts=[ASKED] * 2, completions=spoken, **own)) == texts
    tagged = asyncio.run(
        reward(prompts=[ASKED], completions=spoken[:1], adversarial=[True], completion_ids=[[1]])
    )
    [by_safety] = rewards(served, item("me.", adversarial=True))
    assert by_safety["decided_by"] == "safety"
    assert tagged == pytest.approx([by_safety["reward"]], abs=1e-6)


def test_more_than_fit_one_request_are_asked_for_in_order(served: Served) -> None:
    """The service takes 64 at a time."""
    texts = [f"{n}" * (n % 7 + 1) for n in range(150)]
    reward = trl_reward(served.url, served.key("score"), model="helpfulness")
    found = asyncio.run(reward(prompts=["who?"] * 150, completions=texts))
    for n in (0, 63, 64, 149):
        [alone] = rewards(served, item(texts[n]))
        assert found[n] == pytest.approx(alone["scores"]["helpfulness"]["logit"], abs=1e-6)


def test_verl_scores_an_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run_single` of verl's naive reward manager awaits it with these and more keywords; lists in
    its data come as arrays."""
    monkeypatch.setenv(KEY_VARIABLE, served.key("score"))
    compute_score = verl_compute_score(served.url, model="safety")
    assert inspect.iscoroutinefunction(compute_score)
    [expected] = rewards(served, item("me."))
    for prompt in ({"question": "who?"}, {"prompt": np.array(ASKED, dtype=object)}):
        found = asyncio.run(
            compute_score(
                data_source="openai/gsm8k",
                solution_str="me.",
                ground_truth="42",
                extra_info={**prompt, "index": 3, "adversarial": np.bool_(False)},
                reward_router_address="localhost:1",
                reward_model_tokenizer=None,
            )
        )
        assert found == pytest.approx(expected["scores"]["safety"]["logit"], abs=1e-6)
    with pytest.raises(InputError, match="extra_info"):
        asyncio.run(compute_score("d", "me.", "42", {"index": 3}))


def test_a_key_that_is_not_good_enough_raises_at_once(served: Served) -> None:
    start = time.monotonic()
    for key in (None, "rw_nonsense", served.key("generate")):
        with pytest.raises(UnscoredError, match=r": 40[13] "):
            asyncio.run(trl_reward(served.url, key)(prompts=["a"], completions=["b"]))
    assert time.monotonic() - start < 10


class _Busy(BaseHTTPRequestHandler):
    """Answers 503 so many times, then 200."""

    left = 0
    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        if type(self).left:
            type(self).left -= 1
            self.send_response(503)
            self.send_header("Retry-After", "1")
            body = b"{}"
        else:
            self.send_response(200)
            body = json.dumps({"results": [{"reward": 0.5, "scores": {}}]}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def busy() -> Iterator[str]:
    _Busy.left = _Busy.asked = 0
    server = HTTPServer(("127.0.0.1", 0), _Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_busy_service_is_asked_again_when_it_says(busy: str) -> None:
    _Busy.left = 2
    start = time.monotonic()
    assert asyncio.run(trl_reward(busy)(prompts=["a"], completions=["b"])) == [0.5]
    assert _Busy.asked == 3
    assert 2 <= time.monotonic() - start < 8


def test_an_outage_raises_in_time_and_is_no_number(busy: str) -> None:
    _Busy.left = 1000
    start = time.monotonic()
    with pytest.raises(UnscoredError, match="503"):
        asyncio.run(trl_reward(busy, timeout_s=2.5)(prompts=["a"], completions=["b"]))
    assert 2 < time.monotonic() - start < 6
    nobody = trl_reward("http://127.0.0.1:9", timeout_s=1.5)
    with pytest.raises(UnscoredError, match="ConnectError"):
        asyncio.run(nobody(prompts=["a"], completions=["b"]))


def test_trainers_import_the_shims_without_ray_and_torch() -> None:
    code = (
        "import sys, services.reward_shims\n"
        "print([one for one in ('ray', 'torch', 'transformers') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
