"""A session with a policy: answers, scores and logprobs, as its parts give them by themselves."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rayward.actors.models.loading import load_scalar_model, load_tokenizer, save_model
from rayward.actors.sampling.policy_session import PolicySession
from rayward.actors.scoring.reward_model import RewardModel
from rayward.actors.text.chat import encode_conversation, encode_prompt
from rayward.cluster.config.ppo import PPOSettings, SamplingSettings
from rayward.cluster.types import Message, Prompt, Question
from tests.tiny import write_tiny_llama

SAMPLING = SamplingSettings(max_response_tokens=8)
COUNT = 7


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def safety(policy: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("safety")
    model = load_scalar_model(policy, "float32", seed=3)
    save_model(model, load_tokenizer(policy), directory)
    return str(directory)


@pytest.fixture(scope="module")
def session(ray_session: None, policy: str, safety: str) -> Iterator[PolicySession]:
    with PolicySession(policy, PPOSettings(), {"safety": safety}, 64, seed=0) as opened:
        yield opened


@pytest.fixture(autouse=True)
def chunks_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that seven questions are three chunks."""
    monkeypatch.setattr("rayward.actors.sampling.policy_session._CHUNK", 3)


def prompts() -> list[Prompt]:
    return [
        Prompt(str(i), (Message("user", "ask" * (i % 3 + 1)),), None, None, False, False, "test")
        for i in range(COUNT)
    ]


def questions(session: PolicySession) -> list[Question]:
    return [
        Question(prompt, encode_prompt(session.tokenizer, prompt.messages), 100 + i, i % 2)
        for i, prompt in enumerate(prompts())
    ]


def test_all_answers_come_back_in_order_with_their_scores(
    session: PolicySession, policy: str, safety: str
) -> None:
    told: list[int] = []
    asked = questions(session)
    answers = session.ask(asked, SAMPLING, ["safety"], told.append)
    assert told == [3, 3, 1]
    for question, rollout in zip(asked, answers.rollouts, strict=True):
        assert rollout.prompt.id == question.prompt.id
        assert rollout.sample_index == question.sample_index
        assert rollout.token_ids[: rollout.response_start].tolist() == question.token_ids
        assert len(rollout.response_ids) <= 8
    assert len(answers.texts) == COUNT
    assert answers.texts[0] == session.tokenizer.decode(
        answers.rollouts[0].response_ids, skip_special_tokens=True
    )
    assert set(answers.scores) == {"safety"}
    model = RewardModel("safety", safety, PPOSettings().safety, policy)
    assert answers.scores["safety"] == pytest.approx(model.score(answers.rollouts), abs=1e-6)
    assert np.ptp(answers.scores["safety"]) > 1e-4
    # The seed of each question draws its answer, whatever it is asked with.
    again = session.ask(asked[::-1], SAMPLING)
    assert again.texts[::-1] == answers.texts
    assert again.scores == {}
    assert len(set(answers.texts)) == COUNT


def test_answers_that_somebody_else_gave_are_scored(
    session: PolicySession, policy: str, safety: str
) -> None:
    told: list[int] = []
    written = [f"answer {i}" for i in range(COUNT)]
    answers = session.score(prompts(), written, ["safety"], told.append)
    assert (told, answers.texts) == ([3, 3, 1], written)
    sequences = [
        encode_conversation(session.tokenizer, prompt.messages, text).token_ids
        for prompt, text in zip(prompts(), written, strict=True)
    ]
    model = RewardModel("safety", safety, PPOSettings().safety, policy)
    assert answers.scores["safety"] == pytest.approx(model.score_tokens(sequences), abs=1e-6)


def test_continuations_have_the_logprobs_that_transformers_gives(
    session: PolicySession, policy: str
) -> None:
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 256, 5 + i).tolist() for i in range(COUNT)]
    starts = [1 + i % 4 for i in range(COUNT)]
    found = session.continuation_logprobs(sequences, starts)
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    for ids, start, own in zip(sequences, starts, found, strict=True):
        with torch.no_grad():
            table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [float(table[at - 1, ids[at]]) for at in range(start, len(ids))]
        assert own == pytest.approx(expected, abs=1e-5)


def test_nothing_asked_is_nothing_answered(session: PolicySession) -> None:
    answers = session.ask([], SAMPLING, ["safety"])
    assert (answers.rollouts, answers.texts, answers.scores["safety"].shape) == ([], [], (0,))
    assert session.continuation_logprobs([], []) == []
