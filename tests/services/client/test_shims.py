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
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from rayward.cluster.errors import InputError, UnscoredError
from rayward.services.client import rewards as client_rewards
from rayward.services.client.rewards import KEY_VARIABLE, trl_reward, verl_compute_score
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
    own = {"completion_ids": [[1, 9], [2, 9]], "trainer_state": None, "log_metric": None}
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
    told = trl_reward(served.url, served.key("score"), end_ids=[9])
    own["completion_ids"] = [[1, 9], [2, 2]]
    [ended] = rewards(served, item("me."))
    [cut] = rewards(served, item("them", ended=False))
    assert cut["reward"] != expected[1]
    found = asyncio.run(told(prompts=["who?"] * 2, completions=["me.", "them"], **own))
    assert found == pytest.approx([ended["reward"], cut["reward"]], abs=1e-6)


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
    assert time.monotonic() - start < 60


class _Busy(BaseHTTPRequestHandler):
    """Answers 503 or another status so many times, then 200."""

    left = 0
    asked = 0
    status = 503
    items: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        type(self).asked += 1
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        if type(self).left:
            type(self).left -= 1
            self.send_response(self.status)
            if self.status == 503:
                self.send_header("Retry-After", "1")
            body = b"{}"
        else:
            self.items.extend(asked)
            self.send_response(200)
            results = [{"reward": 0.5, "scores": {"safety": {"logit": 0.5}}}] * len(asked)
            body = json.dumps({"results": results}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def busy() -> Iterator[str]:
    _Busy.left = _Busy.asked = 0
    _Busy.status = 503
    _Busy.items.clear()
    server = HTTPServer(("127.0.0.1", 0), _Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_service_that_is_busy_or_away_is_asked_again(
    busy: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 is what HAProxy says while no gateway stands behind it. Who says when is heeded."""
    monkeypatch.setattr(client_rewards, "_PAUSE_S", 0.2)
    _Busy.left, _Busy.status = 2, status
    start = time.monotonic()
    assert asyncio.run(trl_reward(busy)(prompts=["a"], completions=["b"])) == [0.5]
    assert _Busy.asked == 3
    assert time.monotonic() - start >= (2 if status == 503 else 0.4)


def test_an_outage_raises_in_time_and_is_no_number(busy: str) -> None:
    _Busy.left = 1000
    start = time.monotonic()
    with pytest.raises(UnscoredError, match="503"):
        asyncio.run(trl_reward(busy, timeout_s=2.5)(prompts=["a"], completions=["b"]))
    assert 2 < time.monotonic() - start < 60
    nobody = trl_reward("http://127.0.0.1:9", timeout_s=1.5)
    with pytest.raises(UnscoredError, match="ConnectError"):
        asyncio.run(nobody(prompts=["a"], completions=["b"]))


def test_what_will_not_pass_is_not_asked_again(busy: str) -> None:
    _Busy.left, _Busy.status = 1, 422
    with pytest.raises(UnscoredError, match="422"):
        asyncio.run(trl_reward(busy)(prompts=["a"], completions=["b"]))
    assert _Busy.asked == 1


def asked_with(busy: str, end_ids: list[int] | None = None, **columns: object) -> list[Any]:
    """The tags and the ends that a service is told of two completions."""
    _Busy.items.clear()
    reward = trl_reward(busy, end_ids=end_ids or ())
    assert asyncio.run(reward(prompts=["a", "b"], completions=["c", "d"], **columns)) == [0.5, 0.5]
    return [(one["adversarial"], one["ended"]) for one in _Busy.items]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, iter])
def test_columns_of_any_kind_are_read(busy: str, kind: Any) -> None:  # noqa: ANN401
    assert asked_with(busy, adversarial=kind([True, False])) == [(True, True), (False, True)]
    assert asked_with(busy, ended=kind([False, True])) == [(False, False), (False, True)]


def test_columns_that_are_none_are_no_tags(busy: str) -> None:
    assert asked_with(busy, adversarial=None) == [(False, True)] * 2
    assert asked_with(busy, adversarial=[None, True]) == [(False, True), (True, True)]
    for wrong in ([True], np.array([True] * 3), True, 1.0, "no", ["true", "false"]):
        with pytest.raises(InputError) as caught:
            asked_with(busy, adversarial=wrong)
        assert caught.value.field == "adversarial"
    with pytest.raises(TypeError):
        asked_with(busy, adversarial=np.array(True))


def test_completions_without_an_end_token_are_scored_as_cut(busy: str) -> None:
    """As TRL's GRPO trainer tells them: the ids of each, with its end token if it came to one."""
    ids = [[5, 6, 2], torch.tensor([5, 6])]
    assert asked_with(busy, [1, 2], completion_ids=ids) == [(False, True), (False, False)]
    assert asked_with(busy, [1, 2], completion_ids=[[], [1]]) == [(False, False), (False, True)]
    # What the data says goes before, and without end tokens nothing is known.
    told = asked_with(busy, [1, 2], completion_ids=ids, ended=[False, True])
    assert told == [(False, False), (False, True)]
    assert asked_with(busy, completion_ids=ids) == [(False, True)] * 2
    for wrong in ({}, {"completion_ids": ids[:1]}):
        with pytest.raises(InputError, match="completion_ids"):
            asked_with(busy, [1, 2], **wrong)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, (False, True)),
        ({"ended": np.bool_(False)}, (False, False)),
        ({"ended": None, "adversarial": 1}, (True, True)),
    ],
)
def test_verl_says_whether_an_answer_ended(
    busy: str, info: dict[str, Any], expected: tuple[bool, bool]
) -> None:
    score = verl_compute_score(busy, model="safety")
    asyncio.run(score("d", "me.", "42", {"prompt": "who?", **info}))
    assert [(one["adversarial"], one["ended"]) for one in _Busy.items] == [expected]


def test_trainers_import_the_shims_without_ray_and_torch() -> None:
    code = (
        "import sys, rayward.services.client.rewards\n"
        "print([one for one in ('ray', 'torch', 'transformers') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
