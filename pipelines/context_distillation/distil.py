"""Targeted safety context distillation (Llama 2, section 4.2.4).

    adversarial prompt                -> policy -> original  \\
                                                               safety model -> strictly higher: keep
    preprompt + adversarial prompt    -> policy -> distilled /                otherwise: leave
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayward.actors.text.chat import encode_prompt
from rayward.cluster.config.context_distillation import ContextDistillationSettings
from rayward.cluster.errors import InputError
from rayward.cluster.logits import probability
from rayward.cluster.records.distilled import (
    UNCATEGORISED,
    DistillationReport,
    DistilledSample,
    GroupGain,
    Preprompt,
)
from rayward.cluster.records.rates import rate
from rayward.cluster.sampler import Sampler
from rayward.cluster.seeds import stage_seed
from rayward.cluster.types import OnDone, Prompt, Question, Rollout
from rayward.pipelines.context_distillation.preprompts import Preprompts, with_preprompt


def distil(
    session: Sampler,
    prompts: Sequence[Prompt],
    preprompts: Preprompts,
    settings: ContextDistillationSettings,
    seed: int,
    on_done: OnDone,
) -> tuple[list[DistilledSample], DistillationReport]:
    """Answer prompts with and without preprompts, and let the safety model decide one by one.

    Args:
        session: the policy and the safety model.
        prompts: adversarial prompts.
        preprompts: to draw from.
        settings: of the stage.
        seed: of all draws.
        on_done: told how many more answers there are; in all one plus
            `settings.preprompts_per_prompt` for each prompt, at most.

    Raises:
        InputError: no prompt fits.
        ValueError: a prompt is not adversarial. Benign ones are not touched.
    """
    if any(not prompt.adversarial for prompt in prompts):
        raise ValueError("context distillation is for adversarial prompts alone")
    asked = _with_preprompts(session, prompts, preprompts, settings, seed)
    if not asked:
        raise InputError(
            "context_distillation.sampling.max_prompt_tokens",
            settings.sampling.max_prompt_tokens,
            "room for at least one adversarial prompt behind a preprompt",
        )
    originals = session.ask(
        [_question(session, prompt, seed, "original") for prompt, _ in asked],
        settings.sampling,
        ["safety"],
        on_done,
    )
    flat = [(row, one) for row, (_, chosen) in enumerate(asked) for one in chosen]
    distilled = session.ask(
        [
            _question(session, with_preprompt(asked[row][0], one), seed, f"{one.id}/distilled")
            for row, one in flat
        ],
        settings.sampling,
        [],
        on_done,
    )
    # The safety model reads what the policy shall learn to say, without the preprompt, and the
    # very tokens, as it reads the original's.
    behind = [
        _behind(originals.rollouts[row], rollout)
        for (row, _), rollout in zip(flat, distilled.rollouts, strict=True)
    ]
    judged = session.score_rollouts(behind, ["safety"]).scores["safety"]
    scores = originals.scores["safety"]
    refused: Counter[str] = Counter()
    best: dict[int, tuple[float, Preprompt, str]] = {}
    for index, (row, preprompt) in enumerate(flat):
        text = distilled.texts[index]
        # The same words are a tie, whatever tokens they came in.
        is_same = text == originals.texts[row]
        score = float(scores[row] if is_same else judged[index])
        found = fault(text, preprompt, distilled.rollouts[index].finish_reason == "stop")
        if found is not None:
            refused[found] += 1
        elif row not in best or score > best[row][0]:
            best[row] = score, preprompt, text
    samples = [
        DistilledSample(
            prompt=asked[row][0],
            preprompt=preprompt,
            original=originals.texts[row],
            original_score=float(scores[row]),
            distilled=text,
            distilled_score=score,
            kept=score > float(scores[row]),
        )
        for row, (score, preprompt, text) in sorted(best.items())
    ]
    return samples, _report(samples, len(prompts), len(prompts) - len(asked), refused)


def _with_preprompts(
    session: Sampler,
    prompts: Sequence[Prompt],
    preprompts: Preprompts,
    settings: ContextDistillationSettings,
    seed: int,
) -> list[tuple[Prompt, list[Preprompt]]]:
    """Each prompt that fits, with those of its drawn preprompts behind which it fits."""
    most = settings.sampling.max_prompt_tokens

    def fits(prompt: Prompt) -> bool:
        return len(encode_prompt(session.tokenizer, prompt.messages)) <= most

    found = []
    for prompt in prompts:
        rng = np.random.default_rng(stage_seed(seed, f"{prompt.id}/preprompt"))
        drawn = preprompts.choose(rng, prompt.risk_category, settings.preprompts_per_prompt)
        chosen = [one for one in drawn if fits(with_preprompt(prompt, one))]
        if chosen and fits(prompt):
            found.append((prompt, chosen))
    return found


def _behind(original: Rollout, distilled: Rollout) -> Rollout:
    """The distilled answer behind the prompt of the original one."""
    prompt_ids = original.token_ids[: original.response_start]
    return replace(
        distilled,
        prompt=original.prompt,
        token_ids=np.concatenate([prompt_ids, distilled.response_ids]),
        response_start=original.response_start,
    )


def _question(session: Sampler, prompt: Prompt, seed: int, draw: str) -> Question:
    token_ids = encode_prompt(session.tokenizer, prompt.messages)
    return Question(prompt, token_ids, stage_seed(seed, f"{prompt.id}/{draw}"))


def fault(text: str, preprompt: Preprompt, ended: bool) -> str | None:
    """Why an answer must not be learned, whatever its score."""
    if not ended:
        return "cut"
    if not text.strip():
        return "empty"
    return "leaked" if _plain(preprompt.text) in _plain(text) else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _report(
    samples: Sequence[DistilledSample], prompts: int, too_long: int, refused: Counter[str]
) -> DistillationReport:
    categories = [one.prompt.risk_category or UNCATEGORISED for one in samples]
    kinds = [one.preprompt.kind for one in samples]
    whole = _gain(samples)
    return DistillationReport(
        prompts=prompts,
        too_long=too_long,
        cut=refused["cut"],
        leaked=refused["leaked"],
        empty=refused["empty"],
        kept=whole.kept,
        gain=whole.gain,
        by_category=_by(samples, categories),
        by_kind=_by(samples, kinds),
    )


def _by(samples: Sequence[DistilledSample], groups: Sequence[str]) -> dict[str, GroupGain]:
    return {
        group: _gain([one for one, own in zip(samples, groups, strict=True) if own == group])
        for group in sorted(set(groups))
    }


def _gain(samples: Sequence[DistilledSample]) -> GroupGain:
    kept = [one for one in samples if one.kept]
    rises = [probability(one.distilled_score) - probability(one.original_score) for one in kept]
    return GroupGain(
        kept=rate(len(kept), len(samples)), gain=sum(rises) / len(rises) if rises else None
    )
