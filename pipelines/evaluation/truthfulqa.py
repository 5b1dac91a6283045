"""TruthfulQA: does a policy answer truthfully, and does it find the truth likely?

Lin et al. 2022, "TruthfulQA" (arXiv 2109.07958); Llama 2 (arXiv 2307.09288), sections 4.1 and
A.4.7. Two measurements on the same prompt, six questions with their answers and then the question,
as plain text with no chat template, whatever the policy: answers that it generates, which judges
read, and the given answers' probabilities (`rayward.pipelines.evaluation.multiple_choice`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import ray

from rayward.actors.scoring.answer_judge import AnswerJudge, AnswerQuality
from rayward.cluster.config.evaluation import AnswerJudgeSettings, TruthfulQASettings
from rayward.cluster.intervals import mean_interval
from rayward.cluster.ray_runtime.placement import one_actor
from rayward.cluster.records.benchmark_results import TruthfulQAResult
from rayward.cluster.records.benchmarks import TruthfulQuestion
from rayward.cluster.records.rates import Rate, rate
from rayward.cluster.records.samples import Sample
from rayward.cluster.sampler import Sampler
from rayward.cluster.types import OnDone, Question
from rayward.pipelines.evaluation.benchmark_answers import (
    benchmark_prompt,
    benchmark_sample,
    prompt_room,
)
from rayward.pipelines.evaluation.multiple_choice import (
    ChoiceScore,
    EncodedChoices,
    encode_choices,
    measure_choices,
)

SOURCE = "truthfulqa"
_DRAWS = 0x545146  # this benchmark's own, apart from those of other measurements
# What follows an answer in the prompt: the next question, or the blank line before it.
_ENDS = ("\nQ:", "\n\n")


@dataclass(frozen=True)
class NamedAnswerJudge:
    """Who judges answers."""

    name: str
    says_yes: Callable[[Sequence[str], Sequence[str]], list[bool]]
    """Questions [N] and answers [N] -> verdicts [N]."""


def cut_answer(text: str) -> str:
    """The answer in a generated text, which may go on with questions of its own.

    Outer white space goes; the answer ends before the first line that starts with "Q:" (it is
    empty where that is the first one) or the first blank line within.
    """
    answer = "\n" + text.strip()
    for end in _ENDS:
        answer = answer.split(end, maxsplit=1)[0]
    return answer.strip()


def choose_questions(
    questions: Sequence[TruthfulQuestion], settings: TruthfulQASettings
) -> list[TruthfulQuestion]:
    """The first questions, as many as the recipe asks for."""
    return list(questions[: settings.questions])


def measure_truthfulqa(
    session: Sampler,
    questions: Sequence[TruthfulQuestion],
    settings: TruthfulQASettings,
    truth_judge: NamedAnswerJudge | None,
    info_judge: NamedAnswerJudge | None,
    seed: int,
    on_done: OnDone | None = None,
) -> tuple[TruthfulQAResult, list[Sample]]:
    """Measure a policy on TruthfulQA and keep its answers.

    Args:
        session: the policy.
        questions: of which `choose_questions` are measured.
        settings: the recipe's.
        truth_judge: says whether an answer is true; None: not judged.
        info_judge: says whether an answer is informative; None: not judged.
        seed: of the run. A question's draw depends on it and on the question's place alone.
        on_done: told of questions, those left out included.

    Returns:
        The result, and the answers in order. An answer's verdict says what was judged:
        "true+informative", "untrue" where only truth was, None where nothing was.

    Raises:
        UnscoredError: a logprob or a verdict could not be had.
    """
    chosen = choose_questions(questions, settings)
    seeds = np.random.SeedSequence([seed, _DRAWS]).generate_state(len(chosen)).tolist()
    room = prompt_room(session, settings.sampling)
    choices: list[EncodedChoices] = []
    asked: list[Question] = []
    for question, own in zip(chosen, seeds, strict=True):
        one = encode_choices(session.tokenizer, question)
        # Behind a choice, the sampler needs room for one token more.
        if len(one.prompt_ids) <= room and one.longest < session.max_model_len:
            choices.append(one)
            # The sample shows the question alone; the policy reads the primer before it.
            prompt = benchmark_prompt(question.id, question.question, SOURCE)
            asked.append(Question(prompt, one.prompt_ids, own))
    left_out = len(chosen) - len(choices)
    if on_done:
        on_done(left_out)
    generated = session.ask(asked, settings.sampling)
    answers = [cut_answer(text) for text in generated.texts]
    scores = measure_choices(session, choices, on_done)
    texts = [one.question.question for one in choices]
    true = truth_judge.says_yes(texts, answers) if truth_judge else None
    informative = info_judge.says_yes(texts, answers) if info_judge else None
    result = summarise(
        scores,
        left_out,
        true,
        informative,
        truth_judge.name if truth_judge else None,
        info_judge.name if info_judge else None,
    )
    unknown = [None] * len(answers)
    samples = [
        benchmark_sample(rollout, answer, _verdict(*verdicts))
        for rollout, answer, *verdicts in zip(
            generated.rollouts, answers, true or unknown, informative or unknown, strict=True
        )
    ]
    return result, samples


def summarise(
    scores: Sequence[ChoiceScore],
    left_out: int,
    true: Sequence[bool] | None,
    informative: Sequence[bool] | None,
    truth_judge: str | None,
    info_judge: str | None,
) -> TruthfulQAResult:
    """From single questions to rates.

    Args:
        scores: of N questions.
        left_out: questions that were not measured.
        true: [N] verdicts on the answers, or None.
        informative: [N] verdicts on the answers, or None.
        truth_judge: who gave `true`.
        info_judge: who gave `informative`.
    """
    both = None
    if true is not None and informative is not None:
        both = [one and other for one, other in zip(true, informative, strict=True)]

    def share(verdicts: Sequence[bool] | None) -> Rate | None:
        return None if verdicts is None else rate(sum(verdicts), len(verdicts))

    masses = [score.mc2 for score in scores]
    interval = None
    if len(masses) > 1:
        _, low, high = mean_interval(masses)
        interval = max(0.0, low), min(1.0, high)
    return TruthfulQAResult(
        questions=len(scores),
        left_out=left_out,
        mc1=rate(sum(score.mc1 for score in scores), len(scores)),
        mc2=fmean(masses) if masses else None,
        mc2_interval=interval,
        truthful=share(true),
        informative=share(informative),
        truthful_and_informative=share(both),
        truth_judge=truth_judge,
        info_judge=info_judge,
    )


@contextmanager
def open_answer_judge(
    quality: AnswerQuality, settings: AnswerJudgeSettings | None
) -> Iterator[NamedAnswerJudge | None]:
    """Start a judge in an actor of its own; None where none is configured."""
    if settings is None:
        yield None
        return
    own = {"quality": quality, "settings": settings}
    with one_actor(f"{quality}_judge", AnswerJudge, settings.resources, own) as judge:

        def says_yes(questions: Sequence[str], answers: Sequence[str]) -> list[bool]:
            logits: Any = ray.get(judge.yes_logits.remote(list(questions), list(answers)))
            return [logit > 0 for logit in logits.tolist()]

        yield NamedAnswerJudge(settings.path, says_yes)


def _verdict(true: bool | None, informative: bool | None) -> str | None:
    words = []
    if true is not None:
        words.append("true" if true else "untrue")
    if informative is not None:
        words.append("informative" if informative else "uninformative")
    return "+".join(words) or None
