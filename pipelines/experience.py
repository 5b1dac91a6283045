"""From scores to experience: reward mix, whitening, KL penalty, GAE."""

from dataclasses import dataclass

import numpy as np

from actors.mixes import RewardMix
from actors.roles import Scores
from cluster.config.ppo import PPOSettings
from cluster.types import Experience, Float32Array, ScoredRollout
from pipelines.advantages import gae, kl_per_token, token_rewards, whiten, whiten_tokens


@dataclass(frozen=True)
class ExperienceBatch:
    """A batch ready to learn from, and what is worth logging of it."""

    experiences: list[Experience]
    metrics: dict[str, float]


def make_experience(scores: Scores, mix: RewardMix, settings: PPOSettings) -> ExperienceBatch:
    """Turn the scores of a batch into token rewards, advantages and returns.

    The batch is whitened as a whole (Llama 2, section 3.4.3), so this is where the first
    barrier of a step stands.
    """
    rollouts = scores.rollouts
    tagged = [rollout.prompt.adversarial for rollout in rollouts]
    mixed = mix.combine(scores.safety, scores.helpfulness, tagged)
    cut = np.array([rollout.finish_reason == "length" for rollout in rollouts])
    rewards = whiten(mixed.score) - settings.missing_end_penalty * cut
    kls = [
        kl_per_token(policy, reference, settings.kl.estimator)
        for policy, reference in zip(scores.policy_logprobs, scores.reference_logprobs, strict=True)
    ]
    per_token = [
        token_rewards(float(reward), kl, settings.kl.beta)
        for reward, kl in zip(rewards, kls, strict=True)
    ]
    estimates = [
        gae(own, values, settings.gamma, settings.gae_lambda)
        for own, values in zip(per_token, scores.values, strict=True)
    ]
    advantages = whiten_tokens([advantage for advantage, _ in estimates])
    returns = [target for _, target in estimates]
    experiences = [
        Experience(
            scored=ScoredRollout(
                rollout=rollout,
                policy_logprobs=scores.policy_logprobs[i],
                reference_logprobs=scores.reference_logprobs[i],
                values=scores.values[i],
                safety=float(scores.safety[i]),
                helpfulness=float(scores.helpfulness[i]),
                decided_by=mixed.decided_by[i],
                reward=float(rewards[i]),
            ),
            token_rewards=per_token[i],
            advantages=advantages[i],
            returns=returns[i],
        )
        for i, rollout in enumerate(rollouts)
    ]
    lengths = np.array([len(rollout.response_ids) for rollout in rollouts])
    drift = np.concatenate(
        [
            policy - rollout.sampler_logprobs
            for policy, rollout in zip(scores.policy_logprobs, rollouts, strict=True)
        ]
    ).astype(np.float64)
    weights = np.exp(drift)
    metrics = {
        "critic/score/mean": float(mixed.score.mean()),
        "critic/rewards/mean": float(np.mean([own.sum() for own in per_token])),
        "critic/vf_explained_var": explained_variance(scores.values, returns),
        "reward/safety/mean": float(scores.safety.mean()),
        "reward/helpfulness/mean": float(scores.helpfulness.mean()),
        "reward/decided_by_safety": float(np.mean([by == "safety" for by in mixed.decided_by])),
        "reward/model_disagreement": float(
            np.mean((scores.safety > 0) != (scores.helpfulness > 0))
        ),
        "actor/reference_kl": float(np.mean(np.concatenate(kls))),
        "response_length/mean": float(lengths.mean()),
        "response_length/clip_ratio": float(cut.mean()),
        "rollout/logprob_diff_mean": float(np.abs(drift).mean()),
        "rollout/logprob_diff_max": float(np.abs(drift).max()),
        "rollout/is_eff_sample_size": float(weights.mean() ** 2 / (weights**2).mean()),
    }
    return ExperienceBatch(experiences, metrics)


def explained_variance(values: list[Float32Array], returns: list[Float32Array]) -> float:
    """1 - var(return - value) / var(return) over all tokens; 0 where the returns are constant."""
    target = np.concatenate(returns).astype(np.float64)
    residual = target - np.concatenate(values)
    variance = target.var()
    return float(1 - residual.var() / variance) if variance > 0 else 0.0
