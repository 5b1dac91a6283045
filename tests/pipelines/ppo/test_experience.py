"""From scores to experience: which score, where it lands, and what is recorded."""

from dataclasses import replace

import numpy as np
import pytest

from rayward.actors.scoring.mixes import make_mix
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.errors import StaleEngineError
from rayward.cluster.types import FinishReason, Message, Prompt, Rollout, Scores
from rayward.pipelines.ppo.experience import ExperienceBatch, explained_variance, make_experience


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


def make(given: Scores, settings: PPOSettings, version: int = 0) -> ExperienceBatch:
    return make_experience(given, make_mix(settings.mix), settings, settings.kl.beta, version)


def test_the_whitened_score_lands_on_the_last_token_and_the_kl_on_all() -> None:
    settings = PPOSettings.model_validate({"kl": {"beta": 0.1}})
    given = scores([rollout(3, True), rollout(1, False)], [2.0, 5.0], [9.0, 4.0])
    batch = make(given, settings)
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
    batch = make(given, settings)
    assert [one.scored.reward for one in batch.experiences] == pytest.approx([1.0, -1.25], abs=1e-6)
    assert batch.metrics["response_length/clip_ratio"] == 0.5


def test_advantages_have_mean_0_and_deviation_1_over_all_tokens() -> None:
    settings = PPOSettings()
    given = scores(
        [rollout(n, n % 2 == 0) for n in (1, 4, 2, 7)], [1.0, -3.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]
    )
    batch = make(given, settings)
    flat = np.concatenate([one.advantages for one in batch.experiences])
    assert flat.mean() == pytest.approx(0, abs=1e-6)
    assert flat.std() == pytest.approx(1, abs=1e-5)


def test_explained_variance() -> None:
    returns = [f32(1, 2), f32(3)]
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance([f32(2, 2), f32(2)], returns) == pytest.approx(0.0)
    assert explained_variance([f32(0, 0), f32(0)], [f32(5, 5), f32(5)]) == 0.0


def group_of_four(estimator: str) -> ExperienceBatch:
    """Two prompts with two answers each; safety scores 1, -1, 1, 1 decide."""
    settings = PPOSettings.model_validate(
        {
            "advantage_estimator": estimator,
            "samples_per_prompt": 2,
            "batch_size": 4,
            "minibatch_size": 2,
            "kl": {"beta": 0.1},
        }
    )
    lengths = (1, 2, 3, 1)
    given = scores([rollout(n, True) for n in lengths], [1.0, -1.0, 1.0, 1.0], [0.0] * 4)
    return make(given, settings)


def test_rloo_compares_answers_to_one_prompt_with_the_kl_in_the_reward() -> None:
    batch = group_of_four("rloo")
    # Whitened: mean .5, deviation .866025: .577350, -1.732051, .577350, .577350.
    # Less .05 a token: .527350, -1.832051, .427350, .527350. Each less its group's other.
    expected = [2.359401, -2.359401, -0.1, 0.1]
    for one, advantage in zip(batch.experiences, expected, strict=True):
        assert one.advantages == pytest.approx([advantage] * len(one.advantages), abs=1e-6)
    assert "critic/vf_explained_var" not in batch.metrics
    # Of three tokens, from each on: .577350 less .15, .1, .05.
    returns = batch.experiences[2].returns
    assert returns == pytest.approx([0.427350, 0.477350, 0.527350], abs=1e-6)


def test_grpo_leaves_the_kl_to_the_loss() -> None:
    batch = group_of_four("grpo")
    for one, advantage in zip(batch.experiences, [1.0, -1.0, 0.0, 0.0], strict=True):
        assert one.advantages == pytest.approx([advantage] * len(one.advantages), abs=1e-5)
    assert batch.experiences[2].token_rewards == pytest.approx([0, 0, 0.577350], abs=1e-6)
    assert batch.metrics["actor/reference_kl"] == pytest.approx(0.5)


def test_a_rollout_older_than_the_bound_is_never_learned_from() -> None:
    settings = PPOSettings(max_staleness=1)
    fresh, old = rollout(2, True), replace(rollout(2, True), policy_version=2)
    given = scores([replace(fresh, policy_version=3), old], [1.0, -1.0], [0.0, 0.0])
    batch = make(given, settings, version=3)
    assert batch.metrics["rollout/staleness_mean"] == 0.5
    assert batch.metrics["rollout/staleness_max"] == 1.0
    with pytest.raises(StaleEngineError, match="1 to 2 versions old, allowed are 0 to 1"):
        make(given, settings, version=4)
    # From the future: a rollout of weights that the learner does not have yet.
    with pytest.raises(StaleEngineError, match="-1 to 0 versions old"):
        make(given, settings, version=2)


def test_the_mismatch_of_sampler_and_learner() -> None:
    # The learner says -1 for every token. Sampled at -1 and at -2: ratios 1 and e, cut at 2.
    sampled = replace(rollout(2, True), sampler_logprobs=f32(-1, -2))
    given = scores([sampled], [0.0], [0.0])
    metrics = make(given, PPOSettings()).metrics
    assert metrics["rollout/logprob_diff_mean"] == pytest.approx(0.5)
    assert metrics["rollout/logprob_diff_max"] == pytest.approx(1.0)
    assert metrics["rollout/mismatch_kl"] == pytest.approx((2.718282 - 2) / 2, abs=1e-6)
    assert metrics["rollout/importance_weight_mean"] == pytest.approx(1.5)
    assert metrics["rollout/importance_weight_capped"] == 0.5
    assert metrics["rollout/is_eff_sample_size"] == pytest.approx(2.25 / 2.5)


def test_with_both_models_deciding_their_weights_are_recorded() -> None:
    settings = PPOSettings.model_validate({"mix": {"name": "weighted_sum"}})
    batch = make(scores([rollout(1, True), rollout(1, False)], [1, 2], [3, 4]), settings)
    first = batch.experiences[0].scored
    assert (first.decided_by, first.safety_weight, first.helpfulness_weight) == ("both", 0.5, 0.5)
    assert batch.metrics["reward/safety_weight"] == 0.5
    assert "reward/decided_by_safety" not in batch.metrics
