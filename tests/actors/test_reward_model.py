"""Scores that depend on nothing but the conversation; and never on a number that is not one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from actors.chat import encode_conversation
from actors.models import load_scalar_model, load_tokenizer, save_model
from actors.reward_model import RewardModel
from cluster.config.roles import ReplicatedRole
from cluster.errors import InputError, UnscoredError
from cluster.types import Message, Prompt, Rollout
from tests.tiny import write_tiny_llama

TEXTS = ["a", "hello world", "x" * 90, "", "what is this ?", "ünïcödé"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("policy")))


def write_scalar(directory: Path, policy: str, **changes: float) -> str:
    model = load_scalar_model(policy, "float32", seed=3)
    with torch.no_grad():
        model.score.weight.mul_(20)
        for name, value in changes.items():
            getattr(model, name).weight.fill_(value)
    save_model(model, load_tokenizer(policy), directory)
    return str(directory)


def rollouts(policy: str, finished: bool = True) -> list[Rollout]:
    tokenizer = load_tokenizer(policy)
    result = []
    for i, text in enumerate(TEXTS):
        prompt = Prompt(str(i), (Message("user", "ask"),), None, None, False, False, "test")
        whole = encode_conversation(tokenizer, prompt.messages, text)
        ids = whole.token_ids if finished else whole.token_ids[:-1]
        result.append(
            Rollout(
                prompt=prompt,
                sample_index=0,
                policy_version=0,
                token_ids=np.array(ids),
                response_start=whole.response_start,
                sampler_logprobs=np.zeros(len(ids) - whole.response_start, np.float32),
                finish_reason="stop" if finished else "length",
            )
        )
    return result


@pytest.fixture(scope="module")
def reward_model(policy: str, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    path = write_scalar(tmp_path_factory.mktemp("reward"), policy)
    return RewardModel("safety", path, ReplicatedRole(), policy)


def test_a_score_does_not_depend_on_padding_or_batch_mates(
    reward_model: RewardModel, policy: str
) -> None:
    batch = rollouts(policy)
    together = reward_model.score(batch)
    alone = np.concatenate([reward_model.score([one]) for one in batch])
    assert np.ptp(together) > 0.01  # the scores differ, so the comparison says something
    assert np.array_equal(together, alone)
    assert np.array_equal(reward_model.score(batch[::-1])[::-1], together)
    assert np.array_equal(reward_model.score(batch * 7)[: len(batch)], together)


def test_a_padded_score_is_what_transformers_gives_alone(
    reward_model: RewardModel, policy: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_scalar(tmp_path_factory.mktemp("plain"), policy)
    plain = AutoModelForSequenceClassification.from_pretrained(path)
    plain.config.pad_token_id = None
    for one, score in zip(rollouts(policy), reward_model.score(rollouts(policy)), strict=True):
        with torch.no_grad():
            logit = plain(input_ids=torch.from_numpy(one.token_ids)[None]).logits.item()
        assert score == pytest.approx(logit, abs=5e-6)


def test_an_ended_and_a_cut_answer_score_differently_although_pad_is_eos(
    reward_model: RewardModel, policy: str
) -> None:
    tokenizer = load_tokenizer(policy)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    ended = reward_model.score(rollouts(policy))
    cut = reward_model.score(rollouts(policy, finished=False))
    assert (np.abs(ended - cut) > 1e-3).all()


def test_a_model_with_another_tokenizer_gets_the_text(policy: str, tmp_path: Path) -> None:
    path = write_scalar(tmp_path / "reward", policy)
    same = RewardModel("safety", path, ReplicatedRole(), policy)
    # The same vocabulary under another template: other ids for the same conversation.
    tokenizer = load_tokenizer(path)
    tokenizer.chat_template = tokenizer.chat_template.replace("\n", " ")
    tokenizer.save_pretrained(path)
    other = RewardModel("safety", path, ReplicatedRole(), policy)
    batch = rollouts(policy)
    assert (np.abs(same.score(batch) - other.score(batch)) > 1e-5).any()
    expected = other.score_tokens(
        [
            encode_conversation(tokenizer, one.prompt.messages, text).token_ids
            for one, text in zip(batch, TEXTS, strict=True)
        ]
    )
    assert other.score(batch) == pytest.approx(expected, abs=1e-6)


def test_a_score_that_is_not_finite_is_an_error(policy: str, tmp_path: Path) -> None:
    path = write_scalar(tmp_path, policy, score=float("nan"))
    broken = RewardModel("helpfulness", path, ReplicatedRole(), policy)
    with pytest.raises(UnscoredError, match="helpfulness: 6 of 6 scores are not finite"):
        broken.score(rollouts(policy))


def test_a_path_that_is_no_model_is_named(policy: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ppo\.safety\.path"):
        RewardModel("safety", str(tmp_path), ReplicatedRole(), policy)
