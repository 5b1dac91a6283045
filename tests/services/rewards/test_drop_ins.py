"""Each trainer's client asks as its own code asks, and reads what its own code reads."""

import base64
import json
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayward.cluster.types import AXES
from tests.serving import Served

TEXT = "<user>who?<eos>\n<assistant>me.<eos>"
JSON = {"Content-Type": "application/json"}
OTHER = "<user>what?<eos>\n<assistant>that<eos>"


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client("score") as client:
        yield client


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def scored(client: httpx.Client, *texts: str, **tags: bool) -> list[dict[str, Any]]:
    """By our own API."""
    items = [{"text": text, **tags} for text in texts]
    results: list[dict[str, Any]] = post(client, "/v1/score", {"items": items})["results"]
    return results


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def near(expected: object) -> Any:  # noqa: ANN401
    return pytest.approx(expected, abs=1e-6)


def test_openrlhf_gets_rewards(client: httpx.Client) -> None:
    """`request_api_wrapper` of openrlhf/utils/remote_rm_utils.py sends this and reads `rewards`,
    `scores` and `extra_logs`; its queries are decoded with padding and without a last end."""
    queries = [TEXT.removesuffix("<eos>"), OTHER + "<eos><eos>"]
    prompts = ["<user>who?<eos>\n<assistant>", "<user>what?<eos>\n<assistant>"]
    body = {"query": queries, "prompts": prompts, "labels": ["", "42"]}
    answer = post(client, "/get_reward", body)
    expected = scored(client, TEXT, OTHER)
    assert answer["rewards"] == near([result["reward"] for result in expected])
    assert answer["scores"] == near([sigmoid(result["reward"]) for result in expected])
    assert set(answer["extra_logs"]) == set(AXES)
    for axis in AXES:
        logits = [result["scores"][axis]["logit"] for result in expected]
        assert answer["extra_logs"][axis] == near(logits)
    # Its older clients send the queries alone.
    assert post(client, "/get_reward", {"query": queries})["rewards"] == near(answer["rewards"])


def test_an_openrlhf_label_may_tag_a_prompt(client: httpx.Client) -> None:
    body = {"query": [TEXT, TEXT], "prompts": ["", ""], "labels": ["adversarial", None]}
    tagged, plain = post(client, "/get_reward", body)["rewards"]
    [with_tag], [without] = scored(client, TEXT, adversarial=True), scored(client, TEXT)
    assert [tagged, plain] == near([with_tag["reward"], without["reward"]])
    assert with_tag["decided_by"] == "safety"
    answer = client.post("/get_reward", json={**body, "labels": ["adversarial"]})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "labels"


@pytest.mark.parametrize("switch", ["use_activation", "activation"])
@pytest.mark.parametrize("axis", AXES)
def test_verl_gets_a_logit(client: httpx.Client, axis: str, switch: str) -> None:
    """`compute_score_disrm` of verl/experimental/reward_loop/reward_loop.py, for vLLM."""
    payload = {"model": axis, "input": TEXT, switch: False}
    output = post(client, "/classify", payload)
    rm_score = output["data"][-1]["probs"][-1]
    logit = scored(client, TEXT)[0]["scores"][axis]["logit"]
    assert rm_score == near(logit)
    activated = post(client, "/classify", {**payload, switch: True})
    assert activated["data"][-1]["probs"][-1] == near(sigmoid(logit))


def test_verl_may_name_a_model_by_its_path(client: httpx.Client, served: Served) -> None:
    payload = {"model": str(served.models / "helpfulness"), "input": TEXT, "use_activation": False}
    logit = scored(client, TEXT)[0]["scores"]["helpfulness"]["logit"]
    assert post(client, "/classify", payload)["data"][-1]["probs"][-1] == near(logit)


def test_verl_on_sglang_gets_a_logit(client: httpx.Client) -> None:
    output = post(client, "/v1/embeddings", {"model": "safety", "input": TEXT})
    logit = scored(client, TEXT)[0]["scores"]["safety"]["logit"]
    assert output["data"][-1]["embedding"][-1] == near(logit)


def test_a_list_of_texts_is_classified_in_order(client: httpx.Client) -> None:
    body = {"model": "combined", "input": [TEXT, OTHER, TEXT], "user": "me", "priority": 0}
    answer = post(client, "/classify", body)
    one, other = (result["reward"] for result in scored(client, TEXT, OTHER))
    assert [data["index"] for data in answer["data"]] == [0, 1, 2]
    assert [data["probs"] for data in answer["data"]] == near(np.array([[one], [other], [one]]))
    assert {data["num_classes"] for data in answer["data"]} == {1}
    assert {data["label"] for data in answer["data"]} == {"LABEL_0"}
    # The tiny tokenizer has one token a letter: 12 in one text, 14 in the other.
    tokens = 2 * 12 + 14
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == tokens
    # Nothing said is the mix, and raw.
    assert post(client, "/classify", {"input": TEXT})["data"][0]["probs"] == near([one])


def test_the_openai_client_gets_embeddings_of_one_number(
    served: Served, client: httpx.Client
) -> None:
    """It asks for base64 unless told otherwise."""
    rewards = [result["reward"] for result in scored(client, TEXT, OTHER)]
    expected = np.array([[reward] for reward in rewards])
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("score")) as asker:
        for options in ({}, {"encoding_format": "float"}):
            answer = asker.embeddings.create(model="combined", input=[TEXT, OTHER], **options)
            assert [data.embedding for data in answer.data] == near(expected)
            assert [data.index for data in answer.data] == [0, 1]
    packed = post(client, "/v1/embeddings", {"input": TEXT, "encoding_format": "base64"})
    [number] = struct.unpack("<f", base64.b64decode(packed["data"][0]["embedding"]))
    assert number == near(rewards[0])


def test_tei_predicts(client: httpx.Client) -> None:
    """The forms of `PredictInput` in its router/src/http/types.rs."""
    one, other = (result["reward"] for result in scored(client, TEXT, OTHER))
    raw = {"raw_scores": True, "truncate": False}
    path = "/predict"
    assert post(client, path, {"inputs": TEXT, **raw}) == [{"score": near(one), "label": "LABEL_0"}]
    assert post(client, path, {"inputs": TEXT})[0]["score"] == near(sigmoid(one))
    assert post(client, path, {"inputs": [TEXT], **raw})[0]["score"] == near(one)
    batch = post(client, path, {"inputs": [[TEXT], ["what?", "that"], [OTHER]], **raw})
    # A pair is a prompt and its answer.
    assert [prediction["score"] for [prediction] in batch] == near([one, other, other])
    [pair] = post(client, path, {"inputs": ["who?", "me."], **raw})
    assert pair["score"] == near(one)
    safety = scored(client, TEXT)[0]["scores"]["safety"]["logit"]
    assert post(client, "/predict?model=safety", {"inputs": TEXT, **raw})[0]["score"] == near(
        safety
    )


def test_what_is_too_long_is_refused_or_cut_as_each_protocol_says(client: httpx.Client) -> None:
    long = "ab" * 300
    [left], [right] = scored(client, long[-512:]), scored(client, long[:512])
    for path, body, param in [
        ("/get_reward", {"query": [TEXT, long]}, "query.1"),
        ("/classify", {"input": long}, "input"),
        ("/classify", {"input": [TEXT, long]}, "input.1"),
        ("/v1/embeddings", {"input": [long]}, "input.0"),
        ("/predict", {"inputs": [[TEXT], [long]]}, "inputs.1"),
    ]:
        answer = client.post(path, json=body)
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == param
        assert "tokens" in answer.json()["error"]["message"]
    cut = {"input": long, "truncate_prompt_tokens": -1}
    assert post(client, "/classify", cut)["data"][0]["probs"] == near([left["reward"]])
    cut["truncation_side"] = "right"
    assert post(client, "/classify", cut)["data"][0]["probs"] == near([right["reward"]])
    raw = {"inputs": long, "truncate": True, "raw_scores": True}
    assert post(client, "/predict", raw)[0]["score"] == near(right["reward"])
    raw["truncation_direction"] = "Left"
    assert post(client, "/predict", raw)[0]["score"] == near(left["reward"])
    rewards = post(client, "/get_reward", {"query": [long[:-1]], "truncate": "right"})["rewards"]
    assert rewards == near([right["reward"]])


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/get_reward", {}, "query"),
        ("/get_reward", {"query": []}, "query"),
        ("/get_reward", {"query": "one"}, "query"),
        ("/get_reward", {"query": ["\udfff"]}, "query"),
        ("/get_reward", {"query": ["a"] * 65}, "query"),
        ("/classify", {"input": []}, "input"),
        ("/classify", {"input": ["a"] * 65}, "input"),
        ("/classify", {"input": "a", "model": "gpt"}, "model"),
        ("/classify", {"input": "\ud800"}, "input"),
        ("/classify", {"input": "a", "model": "\ud800"}, "model"),
        ("/classify", {"input": "a", "truncate_prompt_tokens": 7}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": "a", "model": "gpt"}, "model"),
        ("/predict", {"inputs": []}, "inputs"),
        ("/predict", {"inputs": [["\ud800"]]}, "inputs"),
        ("/predict", {"inputs": ["a", "b", "c"]}, "inputs"),
        ("/predict", {"inputs": [["a"]] * 65}, "inputs"),
    ],
)
def test_what_is_wrong_is_named(
    client: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    answer = client.post(path, content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["param"].split(".")[0] == param


_CHARACTERS = st.characters(exclude_categories=())  # halves of characters too
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(_CHARACTERS)
    | st.sampled_from(["safety", "combined", "adversarial", "left", "Left", "base64", TEXT, ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(_CHARACTERS), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = [
    "query",
    "prompts",
    "labels",
    "model",
    "input",
    "inputs",
    "use_activation",
    "activation",
    "add_special_tokens",
    "truncate",
    "truncation_direction",
    "truncate_prompt_tokens",
    "raw_scores",
    "encoding_format",
    "items",
    "models",
    "deterministic",
]


answered: Counter[int] = Counter()


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    path=st.sampled_from(["/get_reward", "/classify", "/v1/embeddings", "/predict", "/v1/score"]),
    body=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5) | ANYTHING,
    texts=st.none() | st.text(min_size=1) | st.lists(st.text(min_size=1), min_size=1, max_size=3),
)
def test_whatever_is_sent_is_scored_or_refused(
    client: httpx.Client, path: str, body: object, texts: object
) -> None:
    if isinstance(body, dict) and texts is not None:
        body = {**body, "query": [texts] if isinstance(texts, str) else texts}
        body |= {"input": texts, "inputs": texts}
    # With NaN, which is no JSON and comes all the same.
    answer = client.post(path, content=json.dumps(body), headers=JSON)
    answered[answer.status_code] += 1
    assert answer.status_code in (200, 422), answer.text
    if answer.status_code == 422:
        assert answer.json()["error"]["param"]


@pytest.mark.usefixtures("served")
def test_some_of_it_was_scored() -> None:
    assert answered[200] > 10
    assert answered[422] > 10


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/get_reward", {"query": [TEXT]}),
        ("/classify", {"model": "combined", "input": TEXT}),
        ("/v1/embeddings", {"model": "combined", "input": [TEXT]}),
        ("/predict", {"inputs": TEXT}),
    ],
)
def test_every_answer_says_which_models_it_is_from(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    """Their protocols have no field for it, so a header has."""
    told = client.post(path, json=body).headers["X-Rayward-Models"]
    models = post(client, "/v1/score", {"items": [{"text": TEXT}]})["models"]
    assert told == ", ".join(
        f"{axis};version={models[axis]['version']};"
        f"template_hash={models[axis]['template_hash']};truncated=0"
        for axis in ("safety", "helpfulness")
    )
    long = {**body, "query": [TEXT * 400], "truncate": "left"}
    if path == "/get_reward":
        cut = client.post(path, json=long).headers["X-Rayward-Models"]
        assert cut.count("truncated=1") == 2
