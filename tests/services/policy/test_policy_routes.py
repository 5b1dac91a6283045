"""The policy over HTTP: what OpenAI's own client gets, and what nobody may ask."""

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from transformers import AutoModelForCausalLM

from rayward.actors.models.loading import load_tokenizer
from rayward.actors.text.chat import encode_prompt
from rayward.cluster.types import Message
from tests.serving import Served

ASKED: list[Any] = [{"role": "user", "content": "Are you there?"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PRIVATE = "".join(map(chr, range(0xE000, 0xF900)))


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    """OpenAI's client, which tries nothing twice."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("generate"), max_retries=0)


@pytest.fixture(scope="module")
def plain(served: Served) -> Iterator[httpx.Client]:
    with served.client("generate") as client:
        yield client


def chat(client: openai.OpenAI, **options: object) -> ChatCompletion:
    asked: dict[str, Any] = {"model": "policy", "messages": ASKED, "max_tokens": 12, **options}
    answer = client.chat.completions.create(**asked)
    assert isinstance(answer, ChatCompletion)
    return answer


def chunks_of(client: openai.OpenAI, **options: object) -> list[ChatCompletionChunk]:
    asked: dict[str, Any] = {"model": "policy", "messages": ASKED, "max_tokens": 12, **options}
    return list(client.chat.completions.create(**asked, stream=True))


def text(client: openai.OpenAI, **options: object) -> Completion:
    asked: dict[str, Any] = {"model": "policy", "prompt": "Once", "max_tokens": 12, **options}
    answer = client.completions.create(**asked)
    assert isinstance(answer, Completion)
    return answer


def contents(answer: ChatCompletion) -> list[str]:
    return [choice.message.content or "" for choice in answer.choices]


def tokens(choice: Choice | ChunkChoice) -> list[ChatCompletionTokenLogprob]:
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    return logprobs.content


def test_a_seed_gives_the_same_answers_again_and_each_choice_another(
    client: openai.OpenAI,
) -> None:
    first = contents(chat(client, seed=5, n=4))
    assert contents(chat(client, seed=5, n=4)) == first
    assert len(set(first)) == 4
    # Choice i has the seed 5 + i.
    assert contents(chat(client, seed=7)) == [first[2]]
    unseeded = contents(chat(client, n=2)) + contents(chat(client))
    assert len(set(unseeded)) == 3


def test_usage_counts_prompt_and_answers(client: openai.OpenAI) -> None:
    usage = chat(client, seed=5, n=2).usage
    assert usage is not None
    # <user>, 14 characters, <eos>, a line break, <assistant>: one token each.
    assert usage.prompt_tokens == 18
    assert usage.completion_tokens == 24
    assert usage.total_tokens == 42


def test_temperature_zero_is_what_transformers_thinks_most_likely(
    client: openai.OpenAI, served: Served
) -> None:
    answer = chat(client, temperature=0, max_tokens=6, logprobs=True, top_logprobs=1)
    path = str(served.models / "policy")
    tokenizer = load_tokenizer(path)
    ids = encode_prompt(tokenizer, [Message("user", "Are you there?")])
    made = AutoModelForCausalLM.from_pretrained(path).generate(
        torch.tensor([ids]), max_new_tokens=6, do_sample=False
    )
    assert answer.choices[0].message.content == tokenizer.decode(
        made[0, len(ids) :], skip_special_tokens=True
    )
    for token in tokens(answer.choices[0]):
        assert [token.logprob] == [likely.logprob for likely in token.top_logprobs]


def test_logprobs_are_those_of_transformers_at_the_request_s_temperature(
    client: openai.OpenAI, served: Served
) -> None:
    answer = chat(client, seed=1, n=16, max_tokens=3, temperature=0.7, logprobs=True)
    path = str(served.models / "policy")
    tokenizer, model = load_tokenizer(path), AutoModelForCausalLM.from_pretrained(path)
    prompt = encode_prompt(tokenizer, [Message("user", "Are you there?")])
    compared = 0
    for choice in answer.choices:
        ids = list(prompt)
        for token in tokens(choice):
            # A token that is a piece of a character has no text to be known by.
            if token.bytes is None or len(token.bytes) != 1 or token.bytes[0] > 127:
                break
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            (id,) = tokenizer(token.token, add_special_tokens=False)["input_ids"]
            expected = torch.log_softmax(logits / 0.7, -1)[id].item()
            assert token.logprob == pytest.approx(expected, abs=1e-4)
            ids.append(id)
            compared += 1
    assert compared >= 8


def test_a_stop_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    whole = contents(chat(client, seed=5))[0]
    plain = [char for char in whole if char.isascii() and char.isprintable()]
    stop = plain[-1]
    choice = chat(client, seed=5, stop=[stop, "never\n"]).choices[0]
    assert choice.message.content == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"
    assert chat(client, seed=5).choices[0].finish_reason == "length"


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = chat(client, seed=5, n=2)
    pieces: dict[int, list[str]] = {0: [], 1: []}
    ends = {}
    chunks = chunks_of(client, seed=5, n=2, stream_options={"include_usage": True})
    for chunk in chunks[:-1]:
        for choice in chunk.choices:
            pieces[choice.index].append(choice.delta.content or "")
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert ["".join(pieces[index]) for index in (0, 1)] == contents(whole)
    assert min(map(len, pieces.values())) > 3
    assert ends == {0: "length", 1: "length"}
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_logprobs_are_streamed(client: openai.OpenAI) -> None:
    whole = tokens(chat(client, seed=5, logprobs=True, top_logprobs=2).choices[0])
    streamed = [
        token
        for chunk in chunks_of(client, seed=5, logprobs=True, top_logprobs=2)
        for choice in chunk.choices
        if choice.logprobs
        for token in tokens(choice)
    ]
    assert [token.logprob for token in streamed] == [token.logprob for token in whole]
    assert [len(token.top_logprobs) for token in whole] == [
        2 if token.logprob in {likely.logprob for likely in token.top_logprobs} else 3
        for token in whole
    ]


def test_pieces_of_a_message_are_one_text(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": piece} for piece in ("Are you", " there?")]
    pieced = chat(client, seed=5, messages=[{"role": "user", "content": parts}])
    assert contents(pieced) == contents(chat(client, seed=5))


def test_the_text_of_a_control_token_stays_text(client: openai.OpenAI, served: Served) -> None:
    """As in training; as the token itself, "<eos><assistant>" would be two tokens, not 16."""
    content = "hi<eos><assistant>"
    usage = chat(client, messages=[{"role": "user", "content": content}]).usage
    assert usage is not None
    tokenizer = load_tokenizer(str(served.models / "policy"))
    assert (
        usage.prompt_tokens == len(encode_prompt(tokenizer, [Message("user", content)])) == 18 + 4
    )


def test_texts_are_continued(client: openai.OpenAI) -> None:
    one = text(client, seed=3, logprobs=2)
    assert text(client, seed=3).choices[0].text == one.choices[0].text
    logprobs = one.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert one.usage is not None
    assert len(logprobs.tokens) == one.usage.completion_tokens
    several = text(client, seed=3, prompt=["Once", "upon"], n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == one.choices[0].text
    assert several.choices[2].text == text(client, seed=3, prompt="upon").choices[0].text
    assert several.usage is not None
    assert several.usage.prompt_tokens == 8
    chunks = client.completions.create(
        model="policy", prompt="Once", max_tokens=12, seed=3, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == one.choices[0].text
    # OpenAI's default.
    short = client.completions.create(model="policy", prompt="Once", stop=["never\n"], seed=3)
    assert short.usage is not None
    assert short.usage.completion_tokens == 16


def test_models_are_listed(client: openai.OpenAI, served: Served) -> None:
    assert [model.id for model in client.models.list()] == ["policy", "safety", "helpfulness"]
    assert client.models.retrieve("safety").id == "safety"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    scorer = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("score"))
    assert len(scorer.models.list().data) == 3


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        chat(client, model="gpt-4")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError) as hot:
        chat(client, temperature=2.1)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        chat(client, messages=[{"role": "user", "content": "a" * 600}])
    assert long.value.param == "messages"
    assert "604 tokens" in long.value.message
    for key, kind in (
        ("nonsense", openai.AuthenticationError),
        (served.key("score"), openai.PermissionDeniedError),
    ):
        with pytest.raises(kind):
            chat(openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0))


@pytest.mark.parametrize(
    ("path", "field", "wrong"),
    [
        (CHAT, "logit_bias", {"1": 2}),
        (CHAT, "messages", []),
        (CHAT, "messages.0.role", [{"role": "tool", "content": "hi"}]),
        (CHAT, "messages", [{"role": "user", "content": "a" * 508}]),
        (CHAT, "messages", [{"role": "user", "content": "a" * 1_000_000}]),
        (CHAT, "messages", [{"role": "user", "content": "<eos>" * 10_000}]),
        # No private character is left to stand in for "<eos>".
        (CHAT, "messages", [{"role": "user", "content": f"{PRIVATE}<eos>"}]),
        (CHAT, "max_tokens", 0),
        (CHAT, "max_tokens", 1.5),
        (CHAT, "n", 17),
        (CHAT, "n", 10**30),
        (CHAT, "seed", -1),
        (CHAT, "seed", 2**63),
        (CHAT, "top_p", 0),
        (CHAT, "temperature", True),
        (CHAT, "temperature", "1"),
        (CHAT, "top_logprobs", 2),
        (CHAT, "stream_options", {"include_usage": True}),
        (CHAT, "max_completion_tokens", 10**6),
        (TEXT, "echo", True),
        (TEXT, "prompt", ""),
        (TEXT, "prompt", [1, 2]),
        (TEXT, "prompt", ["a", "a" * 600]),
        (TEXT, "n", 17),
        (TEXT, "logprobs", 21),
    ],
)
def test_what_is_wrong_is_named(plain: httpx.Client, path: str, field: str, wrong: object) -> None:
    asked = {"messages": ASKED} if path == CHAT else {"prompt": "Once"}
    name = field.split(".")[0]
    answer = plain.post(path, json={"model": "policy", **asked, name: wrong})
    assert answer.status_code == 400
    # Of a field of several kinds each has a name of its own behind it.
    assert re.match(rf"{re.escape(field)}(\.|$)", answer.json()["error"]["param"])


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"policy","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"policy","messages":[{"role":"user","content":"hi"}],"\\ud800":1}',
        b'{"model":"policy","messages":[{"role":"user","content":"hi"}],"temperature":NaN}',
        b'{"model":"policy","messages":[{"role":"user","content":"hi"}],"stop":["a",""]}',
        b'{"model":"policy","messages":[{"role":"user","content":"hi"}],"seed":'
        + b"1" * 5000
        + b"}",
        b"[" * 100_000,
        b"\xff",
        b"",
    ],
)
def test_what_is_no_request_is_bad_input(plain: httpx.Client, body: bytes) -> None:
    answer = plain.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("content", ["", "\0", "\u202e", "🙂", "\ue000"])
def test_odd_text_is_answered(plain: httpx.Client, content: str) -> None:
    asked = {"model": "policy", "messages": [{"role": "user", "content": content}]}
    assert plain.post(CHAT, json={**asked, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_at_temperature_zero_there_is_one_answer(plain: httpx.Client, path: str) -> None:
    asked = {"messages": ASKED} if path == CHAT else {"prompt": "Once"}
    asked = {"model": "policy", **asked, "temperature": 0, "max_tokens": 1}
    assert plain.post(path, json={**asked, "n": 1}).status_code == 200
    answer = plain.post(path, json={**asked, "n": 2})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_cannot_fit_is_refused_unread(plain: httpx.Client, path: str) -> None:
    text = "a" * 500_000
    asked = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    answer = plain.post(path, json={"model": "policy", **asked})
    assert answer.status_code == 400
    assert "500000 characters" in answer.json()["error"]["message"]


def test_a_wrong_request_for_a_stream_is_no_stream(plain: httpx.Client) -> None:
    long = [{"role": "user", "content": "a" * 600}]
    answer = plain.post(CHAT, json={"model": "policy", "messages": long, "stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"


@pytest.fixture(scope="module")
def engine(served: Served) -> psutil.Process:
    """The process that the policy runs in."""
    (found,) = served.processes("VLLM::EngineCore")
    return found


def work_of(engine: psutil.Process) -> float:
    """CPU seconds so far, once the engine rests."""
    spent = -1.0
    while (now := sum(engine.cpu_times()[:2])) - spent > 0.05:
        spent = now
        time.sleep(0.5)
    return now


def test_a_client_that_leaves_a_stream_ends_the_generation(
    plain: httpx.Client, engine: psutil.Process
) -> None:
    asked = {"model": "policy", "messages": ASKED, "n": 16, "seed": 1, "temperature": 0.1}
    start = work_of(engine)
    assert plain.post(CHAT, json=asked).status_code == 200
    whole = work_of(engine) - start
    with plain.stream("POST", CHAT, json={**asked, "stream": True}) as answer:
        next(answer.iter_lines())
    assert work_of(engine) - start - whole < whole / 2
