"""Rejection sampling: draw K answers to each prompt, keep the best (Llama 2, section 3.2.3).

prompts x K -> rollout workers (vLLM) -> { safety, helpfulness } -> reward mix -> best of K
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayward.actors.scoring.mixes import RewardMix
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.rejection_sampling import RejectionSamplingSettings
from rayward.cluster.records.best_samples import BestSample
from rayward.cluster.records.rejection_sampling import RewardCurve, TemperatureTrial
from rayward.cluster.sampler import Sampler
from rayward.cluster.seeds import stage_seed
from rayward.cluster.types import AXES, Answers, OnDone, Question
from rayward.pipelines.run.encoding import EncodedPrompt

Rewards = npt.NDArray[np.float64]
"""[prompts, K] logits of the mix, in the order of the samples."""


@dataclass(frozen=True)
class BestOfK:
    """What rejection sampling found."""

    best: list[BestSample]
    """One for each prompt that has an answer which came to its end."""
    prompts_without: int
    """Prompts to which all answers were cut at the longest length, or without a word."""
    samples: int
    """Answers drawn."""
    samples_cut: int
    """Answers that were cut: nobody should learn to stop there."""
    curves: dict[str, RewardCurve]
    """By kind of prompt: all, adversarial, harmless."""


def best_of_k(
    session: Sampler,
    prompts: Sequence[EncodedPrompt],
    settings: RejectionSamplingSettings,
    temperature: float,
    mix: RewardMix,
    number: int,
    seed: int,
    on_done: OnDone,
) -> BestOfK:
    """Draw K answers to each prompt and take the best by the mix; of equals the first.

    Args:
        session: the policy and both reward models.
        prompts: what is asked.
        settings: of the stage.
        temperature: at which the answers are drawn.
        mix: picks.
        number: of the round.
        seed: of the draws. The first answers to a prompt are the same for any K.
        on_done: told how many more answers there are.
    """
    answers, rewards = _draw(session, prompts, settings, temperature, mix, seed, on_done)
    k = settings.samples_per_prompt
    whole = np.array([one.finish_reason == "stop" for one in answers.rollouts]).reshape(-1, k)
    worded = np.array([bool(text.strip()) for text in answers.texts]).reshape(-1, k)
    usable = whole & worded
    allowed = np.where(usable, rewards, -np.inf)
    best = [
        BestSample(one.prompt, answers.texts[row * k + pick], float(rewards[row, pick]), number)
        for row, (one, pick) in enumerate(zip(prompts, allowed.argmax(axis=1), strict=True))
        if usable[row].any()
    ]
    adversarial = np.array([one.prompt.adversarial for one in prompts], dtype=bool)
    kinds = {"all": np.ones_like(adversarial), "adversarial": adversarial, "harmless": ~adversarial}
    return BestOfK(
        best=best,
        prompts_without=len(prompts) - len(best),
        samples=whole.size,
        samples_cut=int((~whole).sum()),
        curves={kind: reward_curve(rewards[of]) for kind, of in kinds.items() if of.any()},
    )


def search_temperature(
    session: Sampler,
    prompts: Sequence[EncodedPrompt],
    settings: RejectionSamplingSettings,
    mix: RewardMix,
    seed: int,
    on_done: OnDone,
) -> tuple[float, list[TemperatureTrial]]:
    """Try every temperature of the search on its prompts; of equals the lower one is taken.

    Returns:
        The temperature to sample at, and what was tried; nothing where no search is asked for.
    """
    search = settings.temperature_search
    if search is None:
        return settings.sampling.temperature, []
    rng = np.random.default_rng(stage_seed(seed, "temperature"))
    drawn = rng.permutation(len(prompts))[: search.prompts]
    few = [prompts[index] for index in sorted(drawn.tolist())]
    trials = []
    for temperature in sorted(search.temperatures):
        _, rewards = _draw(session, few, settings, temperature, mix, seed, on_done)
        best = float(rewards.max(axis=1).mean())
        trials.append(TemperatureTrial(temperature=temperature, best_reward=best))
    return max(trials, key=lambda trial: trial.best_reward).temperature, trials


def reward_curve(rewards: Rewards) -> RewardCurve:
    """Mean over prompts of the best and of the median among the first K samples, for every K.

    Args:
        rewards: [prompts, K].
    """
    best = np.maximum.accumulate(rewards, axis=1).mean(axis=0)
    medians = [
        float(np.median(rewards[:, : k + 1], axis=1).mean()) for k in range(rewards.shape[1])
    ]
    return RewardCurve(prompts=len(rewards), max=tuple(best.tolist()), median=tuple(medians))


def keep_earlier(earlier: Sequence[BestSample], rewards: Sequence[float]) -> list[BestSample]:
    """The best of all earlier rounds for each prompt, by today's reward models.

    Args:
        earlier: the best samples of earlier rounds, several for a prompt perhaps.
        rewards: what the mix makes of them now.
    """
    best: dict[str, BestSample] = {}
    for sample, reward in zip(earlier, rewards, strict=True):
        now = BestSample(sample.prompt, sample.response, float(reward), sample.round)
        held = best.get(sample.prompt.id)
        if held is None or now.reward > held.reward:
            best[sample.prompt.id] = now
    return list(best.values())


def score_again(
    session: Sampler, samples: Sequence[BestSample], mix: RewardMix, on_done: OnDone
) -> list[float]:
    """What the mix makes of earlier samples by the session's reward models, logits."""
    answers = session.score(
        [one.prompt for one in samples], [one.response for one in samples], AXES, on_done
    )
    return [float(reward) for reward in _mixed(answers, mix)]


def _draw(
    session: Sampler,
    prompts: Sequence[EncodedPrompt],
    settings: RejectionSamplingSettings,
    temperature: float,
    mix: RewardMix,
    seed: int,
    on_done: OnDone,
) -> tuple[Answers, Rewards]:
    k = settings.samples_per_prompt
    sampling: SamplingSettings = settings.sampling.model_copy(update={"temperature": temperature})
    questions = [
        # A prompt's draws depend on its id alone, and the first of them not on K.
        Question(one.prompt, one.token_ids, stage_seed(seed, f"{one.prompt.id}/{index}"), index)
        for one in prompts
        for index in range(k)
    ]
    answers = session.ask(questions, sampling, AXES, on_done)
    return answers, _mixed(answers, mix).reshape(-1, k)


def _mixed(answers: Answers, mix: RewardMix) -> Rewards:
    tagged = [one.prompt.adversarial for one in answers.rollouts]
    scores = answers.scores
    return mix.combine(scores["safety"], scores["helpfulness"], tagged).score.astype(np.float64)
