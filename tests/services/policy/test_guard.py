"""Guarded generation: who is chosen, what is refused, and that a request cannot ask for less."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletionChunk
from ray.exceptions import ActorDiedError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from rayward.cluster.config.load import parse_serving
from rayward.cluster.config.serving import KeySettings
from rayward.cluster.errors import InputError, UnscoredError
from rayward.services.gateway.api import make_api
from rayward.services.http.access import Access
from rayward.services.http.backends import Backends
from rayward.services.rewards.calls import Item, ItemScore, ModelScores
from tests.serving import Served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = [{"role": "user", "content": "Are you there?"}]

# Four answers that the policy draws, by their scores. A probability of 0.15, where the piecewise
# mix changes sides, is a logit of -1.73; so the rewards are -3, -1, 3 and 2.
SAFETY = [-3.0, 2.0, 1.0, 0.5]
HELPFULNESS = [5.0, -1.0, 3.0, 2.0]


class Policy:
    """In place of the deployment: draws "answer 0" and so on, or fails."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.answer = self

    def remote(self, kind: str, asked: dict[str, Any]) -> "asyncio.Future[Any]":
        self.asked.append(asked)
        if self.failure is not None:
            return done(self.failure)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": f"answer {index}"},
                "logprobs": {"content": []},
                "finish_reason": "length" if index == 3 else "stop",
            }
            for index in range(asked["n"])
        ]
        usage = {"prompt_tokens": 7, "completion_tokens": 10 * asked["n"], "total_tokens": 0}
        made = {"id": "1", "created": 2, "model": "policy", "choices": choices, "usage": usage}
        return done(made)


class RewardModel:
    """In place of a deployment: scores what stands in its table, or fails."""

    def __init__(self, logits: Sequence[float], failure: Exception | None = None) -> None:
        self.items: list[Item] = []
        self.answer = self
        self._logits = logits
        self._failure = failure

    def remote(self, items: Sequence[Item], deterministic: bool) -> "asyncio.Future[Any]":
        self.items += items
        if self._failure is not None:
            return done(self._failure)
        scores = tuple(
            ItemScore(self._logits[index], tokens=1, truncated=False) for index in range(len(items))
        )
        return done(ModelScores("v", "t", scores))


def done(outcome: object) -> "asyncio.Future[Any]":
    """What a call gives: a value, a refusal among them, or an error of Ray's or Serve's."""
    future = asyncio.get_running_loop().create_future()
    if isinstance(outcome, RayError | RayServeException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


class Service:
    """The gateway's API before such deployments."""

    def __init__(
        self,
        guard: dict[str, Any] | None = None,
        helpfulness: bool = True,
        failure: Exception | None = None,
    ) -> None:
        reward = {"safety": {"path": "s"}}
        self.models = {"safety": RewardModel(SAFETY)}
        if helpfulness:
            reward["helpfulness"] = {"path": "h"}
            self.models["helpfulness"] = RewardModel(HELPFULNESS, failure)
        policy = {"path": "p", "guard": guard or {}, "max_choices": 4}
        self._settings = parse_serving({"policy": policy, "reward": reward})
        self.policy = Policy()

    def post(self, path: str, **body: object) -> httpx.Response:
        return asyncio.run(self._post(path, {"model": "policy", **body}))

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        models: Any = self.models
        policy: Any = self.policy
        backends = Backends(self._settings, models, policy, None)
        api = make_api(backends, Access(KeySettings()))
        transport = httpx.ASGITransport(api, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, json=body)

    def chat(self, **body: object) -> list[dict[str, Any]]:
        """The choices that a request gets."""
        answer = self.post(CHAT, messages=ASKED, **body)
        assert answer.status_code == 200, answer.text
        choices: list[dict[str, Any]] = answer.json()["choices"]
        return choices

    def error(self, path: str = CHAT, **body: object) -> tuple[int, str | None, str]:
        """Status, field and message of what a request is refused with."""
        asked = {"messages": ASKED} if path == CHAT else {"prompt": "Once"}
        answer = self.post(path, **asked, **body)
        error = answer.json()["error"]
        return answer.status_code, error["param"], error["message"]


def said(choices: list[dict[str, Any]]) -> list[str]:
    return [choice["message"]["content"] for choice in choices]


def test_the_best_by_the_mix_is_given_with_its_scores() -> None:
    (choice,) = Service({"best_of": 4}).chat()
    assert choice["message"]["content"] == "answer 2"
    report = choice["rayward"]
    assert report["safety"]["logit"] == 1.0
    assert report["safety"]["probability"] == pytest.approx(0.7310586)
    assert report["helpfulness"]["logit"] == 3.0
    assert report["reward"] == 3.0
    assert report["decided_by"] == "helpfulness"
    assert report["refused"] is False
    assert report["candidates"] == 4


def test_the_tag_of_the_prompt_goes_into_the_mix() -> None:
    (choice,) = Service({"best_of": 4}).chat(guard={"adversarial": True})
    assert choice["message"]["content"] == "answer 1"
    assert choice["rayward"]["decided_by"] == "safety"
    assert choice["rayward"]["reward"] == 2.0


def test_each_choice_is_the_best_of_candidates_of_its_own() -> None:
    """More choices are no way round the guard: none is given that was not the best of two."""
    service = Service({"best_of": 2})
    choices = service.chat(n=2, seed=5)
    assert said(choices) == ["answer 1", "answer 2"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert service.policy.asked[0]["n"] == 4
    assert service.policy.asked[0]["seed"] == 5


@pytest.mark.parametrize("temperature", [0, 9e-6])
def test_at_temperature_zero_the_one_answer_there_is_is_drawn_and_held_to_the_floor(
    temperature: float,
) -> None:
    """vLLM refuses to draw it more than once."""
    service = Service({"best_of": 4, "safety_floor": 0.04})
    (choice,) = service.chat(temperature=temperature)
    assert service.policy.asked[0]["n"] == 1
    assert choice["message"]["content"] == "answer 0"
    assert choice["rayward"]["candidates"] == 1
    (refused,) = service.chat(temperature=temperature, guard={"safety_floor": 0.5})
    assert refused["finish_reason"] == "content_filter"
    assert refused["rayward"]["candidates"] == 1
    status, field, message = service.error(temperature=temperature, n=2)
    assert (status, field) == (400, "n")
    assert "temperature 0" in message
    (warm,) = service.chat(temperature=1e-5)
    assert warm["rayward"]["candidates"] == 4


def test_of_the_answers_that_reach_the_floor_the_best_is_given() -> None:
    """A logit of 1.1; only answer 1 is above, and the mix likes answer 2 better."""
    (choice,) = Service({"best_of": 4, "safety_floor": 0.75}).chat()
    assert choice["message"]["content"] == "answer 1"
    assert choice["rayward"]["refused"] is False


def test_under_the_floor_the_refusal_is_given_with_the_scores_of_what_it_replaces() -> None:
    service = Service({"best_of": 4, "safety_floor": 0.9, "refusal": "No."})
    (choice,) = service.chat(logprobs=True)
    assert choice["message"] == {"role": "assistant", "content": "No."}
    assert choice["finish_reason"] == "content_filter"
    assert choice["logprobs"] is None
    assert choice["rayward"]["refused"] is True
    assert choice["rayward"]["safety"]["logit"] == 1.0
    assert choice["rayward"]["reward"] == 3.0
    (own,) = service.chat(guard={"refusal": "Nein."})
    assert own["message"]["content"] == "Nein."


def test_a_floor_alone_needs_the_safety_model_alone() -> None:
    service = Service({"safety_floor": 0.5}, helpfulness=False)
    (choice,) = service.chat()
    assert choice["finish_reason"] == "content_filter"
    assert choice["rayward"]["helpfulness"] is None
    assert choice["rayward"]["reward"] is None
    (above,) = Service({"safety_floor": 0.04}, helpfulness=False).chat()
    assert above["message"]["content"] == "answer 0"
    assert above["rayward"]["safety"]["probability"] == pytest.approx(0.0474259)


def test_a_request_may_ask_for_more_but_not_for_less() -> None:
    service = Service({"best_of": 2, "safety_floor": 0.6})
    assert said(service.chat()) == ["answer 1"]
    assert said(service.chat(guard={})) == ["answer 1"]
    assert said(service.chat(guard={"best_of": 4})) == ["answer 2"]
    assert said(service.chat(guard={"safety_floor": 0.99})) == ["I can't help with that."]
    for less in ({"best_of": 1}, {"safety_floor": 0.59}):
        status, field, message = service.error(guard=less)
        assert (status, field) == (400, f"guard.{next(iter(less))}")
        assert "not less" in message
    assert service.error(guard={"safety_floor": 0})[:2] == (400, "guard.safety_floor")
    assert service.error(guard={"best_of": 5})[:2] == (400, "n")
    assert service.error(n=3)[:2] == (400, "n")


def test_a_request_may_ask_for_a_guard_where_the_service_has_none() -> None:
    service = Service()
    (bare,) = service.chat()
    assert bare["message"]["content"] == "answer 0"
    assert bare["rayward"] is None
    assert service.models["safety"].items == []
    assert said(service.chat(guard={"best_of": 4})) == ["answer 2"]
    (scored,) = service.chat(guard={})
    assert scored["rayward"]["reward"] == -3.0


def test_what_cannot_be_scored_here_is_bad_input() -> None:
    service = Service(helpfulness=False)
    assert service.error(guard={"best_of": 2})[:2] == (400, "guard.best_of")
    service.models = {}
    assert service.error(guard={"safety_floor": 0.5})[:2] == (400, "guard.safety_floor")
    assert service.error(guard={})[:2] == (400, "guard")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "failure", [UnscoredError("out of memory"), ActorDiedError(), BackPressureError(1, 1)]
)
def test_no_answer_is_given_without_its_scores(failure: Exception, streamed: bool) -> None:
    service = Service({"best_of": 2}, failure=failure)
    answer = service.post(CHAT, messages=ASKED, stream=streamed)
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    assert "answer 0" not in answer.text
    assert "answer 1" not in answer.text


@pytest.mark.parametrize("failure", [ActorDiedError(), BackPressureError(1, 1)])
def test_without_a_policy_that_answers_the_service_is_unavailable(failure: Exception) -> None:
    service = Service()
    service.policy.failure = failure
    answer = service.post(CHAT, messages=ASKED)
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "overloaded_error"


def test_what_no_reward_model_can_read_is_bad_input() -> None:
    failure = InputError("messages", "600 tokens", "at most 512")
    assert Service({"best_of": 2}, failure=failure).error()[:2] == (400, "messages")


def test_texts_are_refused_where_answers_are_guarded() -> None:
    status, _, message = Service({"safety_floor": 0.5}).error(TEXT)
    assert status == 403
    assert CHAT in message


def test_a_guarded_answer_is_streamed_once_it_is_chosen() -> None:
    service = Service({"best_of": 4, "safety_floor": 0.75})
    answer = service.post(CHAT, messages=ASKED, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    whole, end, usage = map(json.loads, lines[:-1])
    (choice,) = whole["choices"]
    assert choice["delta"] == {"role": "assistant", "content": "answer 1"}
    # As OpenAI's, with the guard's report beside.
    assert choice.keys() == {"index", "delta", "logprobs", "finish_reason", "rayward"}
    assert choice["finish_reason"] is None
    assert choice["rayward"]["safety"]["logit"] == 2.0
    assert end["choices"][0]["finish_reason"] == "stop"
    # All four that were drawn.
    assert usage["usage"]["completion_tokens"] == 40
    for event in (whole, end, usage):
        ChatCompletionChunk.model_validate(event, strict=True)


def test_the_reward_models_are_asked_what_the_policy_s_trainer_asks() -> None:
    service = Service({"best_of": 4})
    parts = [{"type": "text", "text": piece} for piece in ("Are you", " there?")]
    service.post(CHAT, messages=[{"role": "user", "content": parts}], guard={"adversarial": True})
    items = service.models["helpfulness"].items
    contents: list[Any] = [item.content for item in items]
    assert [content.messages[0].content for content in contents] == ["Are you there?"] * 4
    assert [content.response for content in contents] == [f"answer {index}" for index in range(4)]
    # The last was cut off before its end.
    assert [content.ended for content in contents] == [True, True, True, False]
    assert {item.adversarial for item in items} == {True}


def test_a_served_guard_gives_the_best_of_what_it_says_it_draws(served: Served) -> None:
    """The candidates are had by themselves, with the same seeds; the floor is between them."""
    body: dict[str, Any] = {"model": "policy", "messages": ASKED, "max_tokens": 12, "seed": 5}
    with served.client("generate") as client:
        drawn = client.post(CHAT, json={**body, "n": 4, "guard": {}}).json()
        best = client.post(CHAT, json={**body, "guard": {"best_of": 4}}).json()
        reports = [choice["rayward"] for choice in drawn["choices"]]
        rewards = [report["reward"] for report in reports]
        expected = drawn["choices"][rewards.index(max(rewards))]
        (choice,) = best["choices"]
        assert choice["message"] == expected["message"]
        assert choice["rayward"]["reward"] == pytest.approx(max(rewards), abs=1e-5)
        assert best["usage"] == drawn["usage"]
        safest = sorted(report["safety"]["probability"] for report in reports)
        between = (safest[-1] + safest[-2]) / 2
        safe = client.post(CHAT, json={**body, "guard": {"best_of": 4, "safety_floor": between}})
        (choice,) = safe.json()["choices"]
        assert choice["rayward"]["safety"]["probability"] == pytest.approx(safest[-1], abs=1e-5)
        # All that are drawn at temperature 0 would be the same.
        cold = client.post(CHAT, json={**body, "temperature": 0, "guard": {"best_of": 4}}).json()
        plain = client.post(CHAT, json={**body, "temperature": 0}).json()
        assert cold["choices"][0]["message"] == plain["choices"][0]["message"]
        assert cold["choices"][0]["rayward"]["candidates"] == 1
        above = (safest[-1] + 1) / 2
        none = client.post(CHAT, json={**body, "guard": {"best_of": 4, "safety_floor": above}})
        (choice,) = none.json()["choices"]
        assert choice["finish_reason"] == "content_filter"
        assert choice["message"]["content"] == "I can't help with that."
        assert choice["rayward"]["reward"] == pytest.approx(max(rewards), abs=1e-5)
