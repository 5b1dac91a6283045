"""From scores to experience: which score, where it lands, and what is recorded."""

import numpy as np
import pytest

from actors.mixes import make_mix
from actors.roles import Scores
from cluster.config.ppo import PPOSettings
from cluster.types import FinishReason, Message, Prompt, Rollout
from pipelines.experience import explained_variance, make_experience


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def rollout(response: int, adversarial: bool, finish: FinishReason = "stop") -> Rollout:
    return Rollout(
        prompt=Prompt("p", (Message("user", "x"),), None, None, adversarial, False, "test"),
        sample_index=0,
        policy_version=0,
        token_ids=np.arange(2 + response),
        response_start=2,
        sampler_logprobs=np.zeros(response, np.float32),
        finish_reason=finish,
    )


def scores(rollouts: list[Rollout], safety: list[float], helpfulness: list[float]) -> Scores:
    lengths = [len(one.response_ids) for one in rollouts]
    return Scores(
        rollouts=rollouts,
        policy_logprobs=[np.full(n, -1.0, np.float32) for n in lengths],
        reference_logprobs=[np.full(n, -1.5, np.float32) for n in lengths],
        values=[np.zeros(n, np.float32) for n in lengths],
        safety=f32(*safety),
        helpfulness=f32(*helpfulness),
    )


def test_the_whitened_score_lands_on_the_last_token_and_the_kl_on_all() -> None:
    settings = PPOSettings.model_validate({"kl": {"beta": 0.1}})
    given = scores([rollout(3, True), rollout(1, False)], [2.0, 5.0], [9.0, 4.0])
    batch = make_experience(given, make_mix(settings.mix), settings)
    # Tagged: safety 2; untagged and safe: helpfulness 4. Whitened: -1 and 1. k1 is .5 a token.
    assert batch.experiences[0].token_rewards == pytest.approx([-0.05, -0.05, -1.05], abs=1e-6)
    assert batch.experiences[1].token_rewards == pytest.approx([0.95], abs=1e-6)
    assert [one.scored.decided_by for one in batch.experiences] == ["safety", "helpfulness"]
    assert batch.metrics["reward/decided_by_safety"] == 0.5
    assert batch.metrics["critic/score/mean"] == 3.0
    assert batch.metrics["actor/reference_kl"] == pytest.approx(0.5)
    assert batch.metrics["critic/rewards/mean"] == pytest.approx((-1.15 + 0.95) / 2)


def test_an_answer_that_was_cut_carries_the_penalty() -> None:
    settings = PPOSettings.model_validate({"missing_end_penalty": 0.25})
    given = scores([rollout(1, True), rollout(1, True, "length")], [1.0, -1.0], [0.0, 0.0])
    batch = make_experience(given, make_mix(settings.mix), settings)
    assert [one.scored.reward for one in batch.experiences] == pytest.approx([1.0, -1.25], abs=1e-6)
    assert batch.metrics["response_length/clip_ratio"] == 0.5


def test_advantages_have_mean_0_and_deviation_1_over_all_tokens() -> None:
    settings = PPOSettings()
    given = scores(
        [rollout(n, n % 2 == 0) for n in (1, 4, 2, 7)], [1.0, -3.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]
    )
    batch = make_experience(given, make_mix(settings.mix), settings)
    flat = np.concatenate([one.advantages for one in batch.experiences])
    assert flat.mean() == pytest.approx(0, abs=1e-6)
    assert flat.std() == pytest.approx(1, abs=1e-5)


def test_explained_variance() -> None:
    returns = [f32(1, 2), f32(3)]
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance([f32(2, 2), f32(2)], returns) == pytest.approx(0.0)
    assert explained_variance([f32(0, 0), f32(0)], [f32(5, 5), f32(5)]) == 0.0
