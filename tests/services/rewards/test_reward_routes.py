"""`POST /v1/score` says what the actors of training say, and refuses the rest by name."""

import asyncio
import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest

from rayward.actors.models.loading import load_tokenizer
from rayward.actors.scoring.mixes import make_mix
from rayward.actors.scoring.reward_model import RewardModel
from rayward.actors.text.chat import encode_conversation
from rayward.cluster.config.mixes import PiecewiseMixSettings
from rayward.cluster.config.roles import ReplicatedRewardRole
from rayward.cluster.types import AXES, Axis, Message, Prompt, Rollout
from tests.serving import Served

ROOM = 512  # the tiny models' positions
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "who?"}], "response": "me."}


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client("score") as client:
        yield client


@pytest.fixture(scope="module")
def actors(served: Served) -> dict[Axis, RewardModel]:
    """The reward models as they are in training."""
    policy = str(served.models / "policy")
    return {
        axis: RewardModel(axis, str(served.models / axis), ReplicatedRewardRole(), policy)
        for axis in AXES
    }


def score(client: httpx.Client, **body: object) -> dict[str, Any]:
    answer = client.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def random_items(count: int, seed: int) -> list[dict[str, Any]]:
    """Of all lengths up to what the models read; some look like control tokens."""
    generator = random.Random(seed)
    letters = ["a", "b", "é", " ", "<eos>", "<user>", "\n", "中"]

    def text(most: int) -> str:
        return "".join(generator.choices(letters, k=generator.randrange(most)))

    return [
        {
            "messages": [
                {"role": role, "content": text(20)}
                for role in generator.choice([["user"], ["system", "user", "assistant", "user"]])
            ],
            "response": text(generator.choice([2, 10, 50])),
            "ended": generator.random() < 0.8,
            "adversarial": generator.random() < 0.5,
        }
        for _ in range(count)
    ]


def rollouts(served: Served, items: list[dict[str, Any]]) -> list[Rollout]:
    """As the policy would have said them."""
    tokenizer = load_tokenizer(str(served.models / "policy"))
    found = []
    for index, item in enumerate(items):
        messages = tuple(Message(**turn) for turn in item["messages"])
        whole = encode_conversation(tokenizer, messages, item["response"])
        ids = whole.token_ids if item["ended"] else whole.token_ids[:-1]
        found.append(
            Rollout(
                prompt=Prompt(str(index), messages, None, None, False, False, "test"),
                sample_index=0,
                policy_version=0,
                token_ids=np.array(ids),
                response_start=whole.response_start,
                sampler_logprobs=np.zeros(len(ids) - whole.response_start, np.float32),
                finish_reason="stop" if item["ended"] else "length",
            )
        )
    return found


async def ask_in_parts(
    served: Served, items: list[dict[str, Any]], seed: int, deterministic: bool
) -> list[dict[str, Any]]:
    """Many requests of one to nine items at once, in a random order; the results in the items'."""
    generator = random.Random(seed)
    order = generator.sample(range(len(items)), len(items))
    results: list[dict[str, Any]] = [{}] * len(items)
    headers = {"Authorization": f"Bearer {served.key('score')}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=120) as client:

        async def ask(rows: list[int]) -> None:
            body = {"items": [items[row] for row in rows], "deterministic": deterministic}
            answer = await client.post("/v1/score", json=body)
            assert answer.status_code == 200, answer.text
            for row, result in zip(rows, answer.json()["results"], strict=True):
                results[row] = result

        async with asyncio.TaskGroup() as group:
            while order:
                rows = [order.pop() for _ in range(min(len(order), generator.randint(1, 9)))]
                group.create_task(ask(rows))
    return results


def logits(results: list[dict[str, Any]], axis: Axis) -> np.ndarray:
    return np.array([result["scores"][axis]["logit"] for result in results], dtype=np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_training(
    served: Served, actors: dict[Axis, RewardModel], seed: int
) -> None:
    items = random_items(80, seed)
    sampled = rollouts(served, items)
    free = asyncio.run(ask_in_parts(served, items, seed, deterministic=False))
    fixed = asyncio.run(ask_in_parts(served, items, seed, deterministic=True))
    expected = {axis: actors[axis].score(sampled) for axis in AXES}
    for axis in AXES:
        assert np.ptp(expected[axis]) > 5  # random tiny models left alone give nothing but zeros
        assert np.abs(logits(free, axis) - expected[axis]).max() <= 1e-6
        assert np.array_equal(logits(fixed, axis), expected[axis])
        tokens = [result["scores"][axis]["tokens"] for result in fixed]
        assert tokens == [len(one.token_ids) for one in sampled]
        probabilities = [result["scores"][axis]["probability"] for result in fixed]
        assert probabilities == pytest.approx(1 / (1 + np.exp(-expected[axis].astype(float))))
    tags = [item["adversarial"] for item in items]
    mixed = make_mix(PiecewiseMixSettings()).combine(
        expected["safety"], expected["helpfulness"], tags
    )
    assert [result["reward"] for result in fixed] == mixed.score.tolist()
    assert tuple(result["decided_by"] for result in fixed) == mixed.decided_by
    assert len(set(mixed.decided_by)) == 2
    under = expected["safety"] < np.log(0.15 / 0.85)
    assert [result["under_safety_gate"] for result in fixed] == under.tolist()
    assert set(under.tolist()) == {True, False}


def test_a_text_scores_as_the_conversation_that_it_is(client: httpx.Client) -> None:
    """With the template's end token; pad is the end token here."""
    text = "<user>who?<eos>\n<assistant>me."
    found = score(
        client, items=[ASK, {"text": text + "<eos>"}, {"text": text}, {**ASK, "ended": False}]
    )
    conversation, ended, cut, unended = [result["scores"] for result in found["results"]]
    assert conversation == ended
    assert cut == unended
    for axis in AXES:
        assert abs(ended[axis]["logit"] - cut[axis]["logit"]) > 1e-2


def test_special_tokens_in_a_message_are_text(client: httpx.Client) -> None:
    forged = {"messages": [{"role": "user", "content": "a<eos>"}], "response": "<eos>b"}
    plain = {"messages": [{"role": "user", "content": "a"}], "response": "b"}
    found = score(client, items=[forged, plain, {"text": "a<eos>"}])
    sizes = [result["scores"]["safety"]["tokens"] for result in found["results"]]
    assert sizes == [7 + 10, 7, 2]  # <user> a <eos> \n <assistant> b <eos>, and twice five letters


def test_every_answer_says_which_models_scored(served: Served, client: httpx.Client) -> None:
    found = score(client, items=[ASK])
    template = str(load_tokenizer(str(served.models / "policy")).chat_template)
    assert found["mix"] == "piecewise"
    assert found["safety_gate"] == 0.15
    assert set(found["models"]) == set(AXES)
    for model in found["models"].values():
        assert model["template_hash"] == hashlib.sha256(template.encode()).hexdigest()
        assert len(model["version"]) == 64
    assert found["models"]["safety"]["version"] != found["models"]["helpfulness"]["version"]


def test_versions_are_hashes_of_the_weights(
    client: httpx.Client, actors: dict[Axis, RewardModel]
) -> None:
    models = score(client, items=[ASK])["models"]
    assert {axis: models[axis]["version"] for axis in AXES} == {
        axis: actors[axis].digest() for axis in AXES
    }


@pytest.mark.parametrize("axis", AXES)
def test_one_model_alone_makes_no_reward(client: httpx.Client, axis: Axis) -> None:
    found = score(client, items=[ASK, ASK], models=[axis])
    both = score(client, items=[ASK])["results"][0]["scores"]
    for result in found["results"]:
        assert list(result["scores"]) == [axis]
        assert result["scores"][axis]["logit"] == pytest.approx(both[axis]["logit"], abs=1e-6)
        assert result["reward"] is result["decided_by"] is None
        assert (result["under_safety_gate"] is None) == (axis == "helpfulness")
    assert list(found["models"]) == [axis]


def test_what_is_too_long_is_refused_or_cut_as_it_says(client: httpx.Client) -> None:
    long = "".join(random.Random(0).choices("abcd", k=ROOM + 30))
    answer = client.post("/v1/score", json={"items": [ASK, {"text": long}]})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == "items.1"
    assert f"'{ROOM + 30} tokens', expected at most {ROOM}, " in error["message"]
    kept = {"left": long[30:], "right": long[:ROOM]}
    for side, text in kept.items():
        cut, short = score(client, items=[{"text": long}, ASK], truncate=side)["results"]
        whole = score(client, items=[{"text": text}])["results"][0]
        for axis in AXES:
            assert cut["scores"][axis]["truncated"] is True
            assert cut["scores"][axis]["tokens"] == ROOM
            assert short["scores"][axis]["truncated"] is False
            logit = whole["scores"][axis]["logit"]
            assert cut["scores"][axis]["logit"] == pytest.approx(logit, abs=1e-6)
            assert whole["scores"][axis]["truncated"] is False


WRONG: Mapping[str, tuple[dict[str, Any], str]] = {
    "no items": ({"items": []}, "items"),
    "items missing": ({}, "items"),
    "too many items": ({"items": [ASK] * 65}, "items"),
    "unknown field": ({"items": [ASK], "temperature": 1}, "temperature"),
    "unknown model": ({"items": [ASK], "models": ["reward"]}, "models.0"),
    "no models": ({"items": [ASK], "models": []}, "models"),
    "no messages": ({"items": [ASK, {**ASK, "messages": []}]}, "items.1.messages"),
    "no response": ({"items": [{"messages": ASK["messages"]}]}, "items.0"),
    "nothing": ({"items": [{}]}, "items.0"),
    "both forms": ({"items": [{**ASK, "text": "a"}]}, "items.0"),
    "empty text": ({"items": [ASK, {"text": ""}]}, "items.1"),
    "role": (
        {"items": [{**ASK, "messages": [{"role": "tool", "content": "a"}]}]},
        "items.0.messages.0.role",
    ),
    "content": (
        {"items": [{**ASK, "messages": [{"role": "user", "content": None}]}]},
        "items.0.messages.0.content",
    ),
    "half a character": ({"items": [{"text": "\ud800"}]}, "items.0.text"),
    "truncate": ({"items": [ASK], "truncate": True}, "truncate"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(client: httpx.Client, what: str) -> None:
    body, param = WRONG[what]
    json_type = {"Content-Type": "application/json"}
    answer = client.post("/v1/score", content=json.dumps(body), headers=json_type)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["param"] == param


def test_json_carries_every_bit(
    client: httpx.Client,
) -> None:
    """The number that JSON carries is the float32 that the model gave."""
    for result in score(client, items=random_items(20, seed=9))["results"]:
        for axis in AXES:
            logit = result["scores"][axis]["logit"]
            assert float(np.float32(logit)) == logit
