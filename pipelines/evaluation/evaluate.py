"""Measuring a policy: sample answers to held-out prompts, have them judged, count."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rayward.actors.scoring.mixes import RewardMix
from rayward.cluster.config.evaluation import EvaluationSettings
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.records.rates import VIOLATION, StageEvaluation
from rayward.cluster.records.samples import Sample, last_user_turn
from rayward.cluster.sampler import Sampler
from rayward.cluster.types import AXES, Float32Array, OnDone, Prompt, Question, Rollout
from rayward.pipelines.evaluation.judgements import ANSWER, REFUSAL, SAFE, evaluate_judgements
from rayward.pipelines.run.encoding import EncodedPrompt
from rayward.pipelines.tiny_world.oracle import Oracle

# Answers for measuring use draws of their own, apart from those for training.
_EVALUATION_DRAWS = 0x45564C

Judge = Callable[[Sequence[Prompt], Sequence[Rollout], Sequence[str]], list[str]]


@dataclass(frozen=True)
class RefusalJudge:
    """Who tells refusals of harmless prompts."""

    name: str
    refuses: Callable[[Sequence[str]], list[bool]]
    """Answers [N] -> whether each refuses."""


def oracle_judge(oracle: Oracle) -> Judge:
    """The tiny world's oracle, which reads the texts alone."""

    def judge(
        prompts: Sequence[Prompt], rollouts: Sequence[Rollout], texts: Sequence[str]
    ) -> list[str]:
        return [
            oracle.judge(last_user_turn(prompt), text).value
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    return judge


def model_judge(score: Callable[[Sequence[Rollout]], Float32Array]) -> Judge:
    """A judge model: a logit above 0 means safe."""

    def judge(
        prompts: Sequence[Prompt], rollouts: Sequence[Rollout], texts: Sequence[str]
    ) -> list[str]:
        return [SAFE if logit > 0 else VIOLATION for logit in score(rollouts)]

    return judge


def choose_held_out(
    prompts: Sequence[EncodedPrompt], settings: EvaluationSettings
) -> list[EncodedPrompt]:
    """The first prompts of each kind, as many as the recipe asks for."""
    adversarial = [one for one in prompts if one.prompt.adversarial]
    harmless = [one for one in prompts if not one.prompt.adversarial]
    borderline = [one for one in harmless if one.prompt.borderline]
    benign = [one for one in harmless if not one.prompt.borderline]
    return (
        adversarial[: settings.adversarial_prompts]
        + benign[: settings.benign_prompts]
        + borderline[: settings.borderline_prompts]
    )


def evaluate(
    session: Sampler,
    prompts: Sequence[EncodedPrompt],
    sampling: SamplingSettings,
    seed: int,
    judge_name: str | None,
    judge: Judge | None,
    refusal_judge: RefusalJudge | None,
    mix: RewardMix,
    on_done: OnDone,
) -> tuple[StageEvaluation, list[Sample]]:
    """Sample one answer per prompt and measure the answers.

    Two policies that are asked the same prompts with the same seed draw from the same streams.

    Args:
        session: the policy, and the reward models that there are.
        prompts: held-out prompts.
        sampling: temperature, nucleus and length.
        seed: of the run.
        judge_name: who judges; None reports "not judged".
        judge: gives one verdict per answer; None with `judge_name` None.
        refusal_judge: judges the answers to harmless prompts in place of `judge`.
        mix: says which reward model would decide.
        on_done: told how many more answers there are.
    """
    seeds = np.random.SeedSequence([seed, _EVALUATION_DRAWS]).generate_state(len(prompts))
    questions = [
        Question(one.prompt, one.token_ids, int(own))
        for one, own in zip(prompts, seeds.tolist(), strict=True)
    ]
    axes = [axis for axis in AXES if axis in session.reward_models]
    answers = session.ask(questions, sampling, axes, on_done)
    asked = [one.prompt for one in prompts]
    verdicts: list[str | None] = [None] * len(asked)
    if judge is not None:
        verdicts = list(judge(asked, answers.rollouts, answers.texts))
    if refusal_judge is not None:
        harmless = [i for i, prompt in enumerate(asked) if not prompt.adversarial]
        refused = refusal_judge.refuses([answers.texts[i] for i in harmless])
        for i, refuses in zip(harmless, refused, strict=True):
            verdicts[i] = REFUSAL if refuses else ANSWER
    scores = {axis: own.tolist() for axis, own in answers.scores.items()}
    decided_by: Sequence[str | None] = [None] * len(asked)
    weights: list[tuple[float | None, float | None]] = [(None, None)] * len(asked)
    if len(axes) == len(AXES):
        tagged = [prompt.adversarial for prompt in asked]
        mixed = mix.combine(answers.scores["safety"], answers.scores["helpfulness"], tagged)
        decided_by = mixed.decided_by
        weights = list(
            zip(mixed.safety_weight.tolist(), mixed.helpfulness_weight.tolist(), strict=True)
        )
    samples = [
        Sample(
            prompt=rollout.prompt,
            response=answers.texts[i],
            safety=scores["safety"][i] if "safety" in scores else None,
            helpfulness=scores["helpfulness"][i] if "helpfulness" in scores else None,
            decided_by=decided_by[i],
            safety_weight=weights[i][0],
            helpfulness_weight=weights[i][1],
            verdict=verdicts[i],
            step=0,
            policy_version=rollout.policy_version,
            finish_reason=rollout.finish_reason,
        )
        for i, rollout in enumerate(answers.rollouts)
    ]
    rows = list(zip(asked, verdicts, strict=True))
    name = refusal_judge.name if refusal_judge else None
    return evaluate_judgements(rows, judge_name, scores, name), samples
