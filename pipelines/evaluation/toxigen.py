"""ToxiGen: how often does a policy go on toxically with a list of statements about a group?

Hartvigsen et al. 2022, "ToxiGen" (arXiv 2203.09509); Llama 2 (arXiv 2307.09288), sections 4.1 and
A.4.7. The policy reads the prompt as plain text, with no chat template, whatever it is; what it
writes up to the end of the line is judged by itself, without the prompt.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from rayward.actors.scoring.label_judge import LabelJudge
from rayward.actors.text.plain_text import encode_text
from rayward.cluster.config.evaluation import LabelJudgeSettings, ToxigenSettings
from rayward.cluster.ray_runtime.placement import one_actor
from rayward.cluster.records.benchmark_results import ToxigenResult
from rayward.cluster.records.benchmarks import ToxigenPrompt
from rayward.cluster.records.rates import Rate, rate
from rayward.cluster.records.samples import Sample
from rayward.cluster.sampler import Sampler
from rayward.cluster.types import OnDone, Question
from rayward.pipelines.evaluation.benchmark_answers import (
    benchmark_prompt,
    benchmark_sample,
    prompt_room,
)

SOURCE = "toxigen"
TOXIC, NOT_TOXIC = "toxic", "not toxic"
_DRAWS = 0x544F58  # this benchmark's own, apart from those of other measurements


@dataclass(frozen=True)
class NamedToxicityJudge:
    """Who judges continuations."""

    name: str
    is_toxic: Callable[[Sequence[str]], list[bool]]
    """Texts [N] -> verdicts [N]."""


def cut_continuation(text: str) -> str:
    """The statement in a generated text: what stands before the first line break, trimmed."""
    return text.split("\n", maxsplit=1)[0].strip()


def choose_prompts(
    prompts: Sequence[ToxigenPrompt], settings: ToxigenSettings
) -> list[ToxigenPrompt]:
    """The first prompts about each group, of the hateful and of the benign ones each.

    As many of each as the recipe asks for: the published prompts have one file for each.
    """
    seen: Counter[tuple[str, bool]] = Counter()
    chosen = []
    for prompt in prompts:
        kind = prompt.group, prompt.hateful
        if settings.prompts is None or seen[kind] < settings.prompts:
            seen[kind] += 1
            chosen.append(prompt)
    return chosen


def measure_toxigen(
    session: Sampler,
    prompts: Sequence[ToxigenPrompt],
    settings: ToxigenSettings,
    judge: NamedToxicityJudge | None,
    seed: int,
    on_done: OnDone | None = None,
) -> tuple[ToxigenResult, list[Sample]]:
    """Measure a policy on ToxiGen and keep what it wrote.

    Args:
        session: the policy.
        prompts: of which `choose_prompts` are measured.
        settings: the recipe's.
        judge: says whether a text is toxic; None: not judged.
        seed: of the run. A prompt's draw depends on it and on the prompt's place alone.
        on_done: told of prompts, those left out included.

    Returns:
        The result, and the continuations in order, with the verdict "toxic", "not toxic" or None.

    Raises:
        UnscoredError: a verdict could not be had.
    """
    chosen = choose_prompts(prompts, settings)
    seeds = np.random.SeedSequence([seed, _DRAWS]).generate_state(len(chosen)).tolist()
    room = prompt_room(session, settings.sampling)
    groups: list[str] = []
    asked: list[Question] = []
    for prompt, own in zip(chosen, seeds, strict=True):
        ids = encode_text(session.tokenizer, prompt.text)
        if len(ids) <= room:
            groups.append(prompt.group)
            asked.append(Question(benchmark_prompt(prompt.id, prompt.text, SOURCE), ids, own))
    left_out = len(chosen) - len(asked)
    if on_done:
        on_done(left_out)
    answers = session.ask(asked, settings.sampling, on_done=on_done)
    texts = [cut_continuation(text) for text in answers.texts]
    toxic = _judged(texts, judge) if judge else None
    verdicts: list[str | None] = [None] * len(texts)
    if toxic is not None:
        verdicts = [TOXIC if one else NOT_TOXIC for one in toxic]
    samples = [
        benchmark_sample(rollout, text, verdict)
        for rollout, text, verdict in zip(answers.rollouts, texts, verdicts, strict=True)
    ]
    result = ToxigenResult(
        prompts=len(texts),
        left_out=left_out,
        empty=texts.count(""),
        toxic=None if toxic is None else rate(sum(toxic), len(toxic)),
        judge=judge.name if judge else None,
        by_group={} if toxic is None else rates_by_group(groups, toxic),
    )
    return result, samples


def rates_by_group(groups: Sequence[str], toxic: Sequence[bool]) -> dict[str, Rate]:
    """Each group's share of toxic continuations: groups [N], verdicts [N]."""
    totals = Counter(groups)
    counts = Counter(group for group, one in zip(groups, toxic, strict=True) if one)
    return {group: rate(counts[group], total) for group, total in totals.items()}


@contextmanager
def open_toxicity_judge(
    settings: LabelJudgeSettings | None,
) -> Iterator[NamedToxicityJudge | None]:
    """Start the judge in an actor of its own; None where none is configured."""
    if settings is None:
        yield None
        return
    own = {"settings": settings, "field": "evaluation.toxigen.judge"}
    with one_actor("toxicity_judge", LabelJudge, settings.resources, own) as judge:

        def is_toxic(texts: Sequence[str]) -> list[bool]:
            verdicts: Any = ray.get(judge.has_label.remote(list(texts)))
            return [bool(one) for one in verdicts]

        yield NamedToxicityJudge(settings.path, is_toxic)


def _judged(texts: Sequence[str], judge: NamedToxicityJudge) -> list[bool]:
    """Who says nothing says nothing toxic; a classifier would judge its own bias there."""
    verdicts = iter(judge.is_toxic([text for text in texts if text]))
    return [bool(text) and next(verdicts) for text in texts]
