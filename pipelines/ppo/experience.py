"""From scores to experience: reward mix, whitening, KL penalty, advantages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayward.actors.scoring.mixes import MixedReward, RewardMix
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.errors import StaleEngineError
from rayward.cluster.types import Experience, Float32Array, Rollout, ScoredRollout, Scores
from rayward.pipelines.ppo.advantages import (
    gae,
    grpo,
    kl_per_token,
    returns_to_go,
    rloo,
    token_rewards,
    whiten,
    whiten_tokens,
)


@dataclass(frozen=True)
class ExperienceBatch:
    """A batch ready to learn from, and what is worth logging of it."""

    experiences: list[Experience]
    sequence_kl: float  # mean over answers of their KL to the reference, nats, estimator k1
    metrics: dict[str, float]


def make_experience(
    scores: Scores, mix: RewardMix, settings: PPOSettings, beta: float, version: int
) -> ExperienceBatch:
    """Turn the scores of a batch into token rewards, advantages and returns.

    The batch is whitened as a whole (Llama 2, section 3.4.3), so this is where the first
    barrier of a step stands.

    Args:
        scores: of the batch; answers to one prompt stand together.
        mix: the reward mix.
        settings: of the stage.
        beta: weight of the KL penalty.
        version: of the weights that will learn from the batch.

    Raises:
        StaleEngineError: a rollout is more than `max_staleness` versions old.
    """
    rollouts = scores.rollouts
    staleness = np.array([version - rollout.policy_version for rollout in rollouts])
    if staleness.max() > settings.max_staleness or staleness.min() < 0:
        raise StaleEngineError(
            f"rollouts are {staleness.min()} to {staleness.max()} versions old, "
            f"allowed are 0 to {settings.max_staleness}"
        )
    tagged = [rollout.prompt.adversarial for rollout in rollouts]
    mixed = mix.combine(scores.safety, scores.helpfulness, tagged)
    cut = np.array([rollout.finish_reason == "length" for rollout in rollouts])
    rewards = whiten(mixed.score) - settings.missing_end_penalty * cut
    kls = [
        kl_per_token(policy, reference, settings.kl.estimator)
        for policy, reference in zip(scores.policy_logprobs, scores.reference_logprobs, strict=True)
    ]
    in_reward = 0.0 if settings.kl_in_loss else beta
    per_token = [
        token_rewards(float(reward), kl, in_reward) for reward, kl in zip(rewards, kls, strict=True)
    ]
    advantages, returns = _advantages(per_token, scores.values, settings)
    decided_by = mixed.decided_by
    experiences = [
        Experience(
            scored=ScoredRollout(
                rollout=rollout,
                policy_logprobs=scores.policy_logprobs[i],
                reference_logprobs=scores.reference_logprobs[i],
                values=scores.values[i],
                safety=float(scores.safety[i]),
                helpfulness=float(scores.helpfulness[i]),
                decided_by=decided_by[i],
                safety_weight=float(mixed.safety_weight[i]),
                helpfulness_weight=float(mixed.helpfulness_weight[i]),
                reward=float(rewards[i]),
            ),
            token_rewards=per_token[i],
            advantages=advantages[i],
            returns=returns[i],
        )
        for i, rollout in enumerate(rollouts)
    ]
    lengths = np.array([len(rollout.response_ids) for rollout in rollouts])
    metrics = {
        "critic/score/mean": float(mixed.score.mean()),
        "critic/rewards/mean": float(np.mean([own.sum() for own in per_token])),
        "reward/safety/mean": float(scores.safety.mean()),
        "reward/helpfulness/mean": float(scores.helpfulness.mean()),
        "reward/model_disagreement": float(
            np.mean((scores.safety > 0) != (scores.helpfulness > 0))
        ),
        "actor/reference_kl": float(np.mean(np.concatenate(kls))),
        "actor/kl_coef": beta,
        "response_length/mean": float(lengths.mean()),
        "response_length/clip_ratio": float(cut.mean()),
        "rollout/staleness_mean": float(staleness.mean()),
        "rollout/staleness_max": float(staleness.max()),
        **_mix_metrics(mixed, decided_by),
        **_mismatch(scores.policy_logprobs, rollouts, settings.importance_weight_cap),
    }
    if settings.has_critic:
        metrics["critic/vf_explained_var"] = explained_variance(scores.values, returns)
    return ExperienceBatch(experiences, sequence_kl(scores), metrics)


def sequence_kl(scores: Scores) -> float:
    """Mean over answers of their KL to the reference, in nats, by the estimator k1."""
    pairs = zip(scores.policy_logprobs, scores.reference_logprobs, strict=True)
    return float(np.mean([(policy - reference).sum() for policy, reference in pairs]))


def explained_variance(values: list[Float32Array], returns: list[Float32Array]) -> float:
    """1 - var(return - value) / var(return) over all tokens; 0 where the returns are constant."""
    target = np.concatenate(returns).astype(np.float64)
    residual = target - np.concatenate(values)
    variance = target.var()
    return float(1 - residual.var() / variance) if variance > 0 else 0.0


def _advantages(
    per_token: list[Float32Array], values: list[Float32Array], settings: PPOSettings
) -> tuple[list[Float32Array], list[Float32Array]]:
    """Advantages and returns, N of float32 [R_i] each."""
    if settings.advantage_estimator == "gae":
        estimates = [
            gae(own, critic, settings.gamma, settings.gae_lambda)
            for own, critic in zip(per_token, values, strict=True)
        ]
        advantages = whiten_tokens([advantage for advantage, _ in estimates])
        return advantages, [target for _, target in estimates]
    # The whole answer is one action: all of its tokens share its advantage.
    totals = np.array([own.sum(dtype=np.float64) for own in per_token])
    compare = {"grpo": grpo, "rloo": rloo}[settings.advantage_estimator]
    shared = compare(totals, settings.group_size).astype(np.float32)
    advantages = [np.full(len(own), a) for own, a in zip(per_token, shared, strict=True)]
    return advantages, [returns_to_go(own) for own in per_token]


def _mix_metrics(mixed: MixedReward, decided_by: Sequence[str]) -> dict[str, float]:
    """The gate rate where one model decides on each sample, else the mean weight of safety."""
    if "both" in decided_by:
        return {"reward/safety_weight": float(mixed.safety_weight.mean())}
    return {"reward/decided_by_safety": float(np.mean([by == "safety" for by in decided_by]))}


def _mismatch(
    policy_logprobs: list[Float32Array], rollouts: Sequence[Rollout], cap: float
) -> dict[str, float]:
    """How far the sampler's token probabilities are from the learner's, over all tokens."""
    drift = np.concatenate(
        [
            policy - rollout.sampler_logprobs
            for policy, rollout in zip(policy_logprobs, rollouts, strict=True)
        ]
    ).astype(np.float64)
    ratios = np.exp(drift)
    weights = np.minimum(ratios, cap)
    return {
        "rollout/logprob_diff_mean": float(np.abs(drift).mean()),
        "rollout/logprob_diff_max": float(np.abs(drift).max()),
        # KL(sampler || learner), by the estimator k3.
        "rollout/mismatch_kl": float(np.mean(np.expm1(drift) - drift)),
        "rollout/importance_weight_mean": float(weights.mean()),
        "rollout/importance_weight_capped": float(np.mean(ratios > cap)),
        "rollout/is_eff_sample_size": float(weights.mean() ** 2 / (weights**2).mean()),
    }
