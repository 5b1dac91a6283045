"""What a learner descends on, token by token, against gradients worked out by hand.

In the place of a model stands one free number for each response token: the gradient of the loss
with respect to it says all that the objective does.
"""

from collections.abc import Iterator, Sequence
from math import log
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from rayward.actors.learning.learner import Learner
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.types import Experience, Message, Prompt, Rollout, ScoredRollout

Rows = Sequence[Sequence[float]]

PROMPT = Prompt("p", (Message("user", "ask"),), None, None, False, False, "test")
# Two answers of two tokens and of one: the loss is a mean over the three tokens.
ZERO: Rows = [[0.0, 0.0], [0.0]]
ONE: Rows = [[1.0, 1.0], [1.0]]
OLD: Rows = [[-1.0, -1.0], [-1.0]]


class Engine:
    """Stands for DeepSpeed's engine around a model that says what it is told to say."""

    device = torch.device("cpu")

    def __init__(self, said: Rows) -> None:
        self.said = [torch.tensor(row, requires_grad=True) for row in said]
        self.steps = 0

    def __call__(self, rollouts: Sequence[Rollout], with_entropy: bool) -> tuple[Tensor, None]:
        return torch.cat([self.said[one.sample_index] for one in rollouts]), None

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()

    def step(self) -> None:
        self.steps += 1

    def get_global_grad_norm(self) -> float:
        return 1.0

    def gradient(self) -> list[float]:
        """By token, times the number of tokens, which the mean divides by."""
        rows = [one.grad for one in self.said if one.grad is not None]
        return (torch.cat(rows) * sum(map(len, self.said))).tolist()


@pytest.fixture(autouse=True)
def _nothing_of_torch_changes() -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


def plus(rows: Rows, *more: float) -> Rows:
    (a, b), (c,) = rows
    return [[a + more[0], b + more[1]], [c + more[2]]]


def learn(
    role: Literal["policy", "critic"],
    said: Rows,
    old: Rows = OLD,
    *,
    reference: Rows = OLD,
    sampled: Rows = OLD,
    advantages: Rows = ZERO,
    returns: Rows = ZERO,
    kl_coef: float = 0.0,
    **settings: Any,  # noqa: ANN401 (a recipe's)
) -> tuple[Engine, dict[str, float]]:
    """One update on both answers; `old` are logprobs (policy) or values (critic)."""

    def f32(rows: Rows, index: int) -> np.ndarray:
        return np.array(rows[index], dtype=np.float32)

    experiences = [
        Experience(
            scored=ScoredRollout(
                rollout=Rollout(
                    prompt=PROMPT,
                    sample_index=index,
                    policy_version=0,
                    token_ids=np.arange(3 + len(said[index])),
                    response_start=3,
                    sampler_logprobs=f32(sampled, index),
                    finish_reason="stop",
                ),
                policy_logprobs=f32(old, index),
                reference_logprobs=f32(reference, index),
                values=f32(old, index),
                safety=0.0,
                helpfulness=0.0,
                decided_by="safety",
                safety_weight=1.0,
                helpfulness_weight=0.0,
                reward=0.0,
            ),
            token_rewards=f32(ZERO, index),
            advantages=f32(advantages, index),
            returns=f32(returns, index),
        )
        for index in range(2)
    ]
    document = {"batch_size": 2, "minibatch_size": 2, "samples_per_prompt": 2} | settings
    learner = Learner(role, "nowhere", PPOSettings.model_validate(document), rank=0, seed=0)
    engine: Any = Engine(said)
    learner._engine = engine
    metrics = learner.update(experiences, 0, kl_coef)
    assert engine.steps == 1
    return engine, metrics


def test_a_policy_is_moved_by_its_ratio_to_the_learners_own_old_logprobs() -> None:
    # Ratios 1.5 and 0.9 with advantage 1, where the clip at 1.2 binds on the first; 1.5 with -2.
    said = plus(OLD, log(1.5), log(0.9), log(1.5))
    engine, metrics = learn("policy", said, sampled=ZERO, advantages=[[1, 1], [-2]])
    assert engine.gradient() == pytest.approx([0, -0.9, 3.0], abs=1e-5)
    # -1.2, -0.9 and 3 in the mean; one of three clipped.
    assert metrics["actor/pg_loss"] == pytest.approx(0.3, abs=1e-6)
    assert metrics["actor/pg_clipfrac"] == pytest.approx(1 / 3)


def test_grpo_is_pulled_towards_the_reference_by_its_coefficient() -> None:
    # d k3 / d logprob = 1 - reference / policy: with 2, 1/2 and 1 that is -1, 1/2 and 0.
    reference = plus(OLD, log(2), -log(2), 0)
    for kl_coef in (0.1, 0.4):
        engine, metrics = learn(
            "policy", OLD, reference=reference, kl_coef=kl_coef, advantage_estimator="grpo"
        )
        assert engine.gradient() == pytest.approx([-kl_coef, kl_coef / 2, 0], abs=1e-6)
        # (2 - 1 - ln 2) + (1/2 - 1 + ln 2) + 0, in the mean; and no part of the policy's loss.
        assert metrics["actor/kl_loss"] == pytest.approx(0.5 / 3, abs=1e-6)
        assert metrics["actor/pg_loss"] == pytest.approx(0, abs=1e-6)


def test_where_the_kl_is_in_the_reward_it_is_not_in_the_loss_too() -> None:
    engine, metrics = learn("policy", OLD, reference=ZERO, kl_coef=0.4)
    assert engine.gradient() == [0, 0, 0]
    assert "actor/kl_loss" not in metrics


@pytest.mark.parametrize("differs", [{"max_staleness": 1}, {"rollout": {"precision": "bfloat16"}}])
def test_tokens_that_the_sampler_gave_too_seldom_count_for_more_up_to_a_cap(
    differs: dict[str, Any],
) -> None:
    # The learner's probabilities are 3/2, 4 and 1/2 of the sampler's.
    sampled = plus(OLD, -log(1.5), -log(4), log(2))
    engine, _ = learn("policy", OLD, sampled=sampled, advantages=ONE, **differs)
    assert engine.gradient() == pytest.approx([-1.5, -2.0, -0.5], abs=1e-5)
    capped, _ = learn(
        "policy", OLD, sampled=sampled, advantages=ONE, importance_weight_cap=1.0, **differs
    )
    assert capped.gradient() == pytest.approx([-1.0, -1.0, -0.5], abs=1e-5)


def test_where_sampler_and_learner_are_the_same_nothing_is_weighted() -> None:
    engine, _ = learn("policy", OLD, sampled=ZERO, advantages=ONE)
    assert engine.gradient() == pytest.approx([-1, -1, -1], abs=1e-6)


def test_a_critic_that_has_moved_too_far_from_its_old_value_is_held() -> None:
    # Old 1/2. At 1, beyond the clip to 0.7: with a return of 0.8 the free error counts, with 1.5
    # the clipped one, which has no gradient. At 0.6 nothing is clipped.
    engine, metrics = learn(
        "critic", [[1.0, 1.0], [0.6]], [[0.5, 0.5], [0.5]], returns=[[0.8, 1.5], [0.0]]
    )
    assert engine.gradient() == pytest.approx([0.2, 0, 0.6], abs=1e-6)
    assert metrics["critic/vf_loss"] == pytest.approx((0.02 + 0.32 + 0.18) / 3, abs=1e-6)
    assert metrics["critic/vf_clipfrac"] == pytest.approx(1 / 3)
