"""Preference pairs of the tiny world: what is better than what, and by how much.

Both reward models are exploited where they have not looked, so most rejected answers are
corruptions that a policy under PPO drifts to: shuffled, cut, repeated, almost right.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rayward.cluster.types import RISK_CATEGORIES, Rating
from rayward.pipelines.tiny_world.answers import (
    BLUNT_REFUSALS,
    GOOD_REFUSALS,
    answer_half,
    answer_in_full,
    refuse_bluntly,
    refuse_well,
)
from rayward.pipelines.tiny_world.language import (
    ACTS,
    BENIGN_OBJECTS,
    BENIGN_STEPS,
    BORDERLINE_STEPS,
)
from rayward.pipelines.tiny_world.oracle import Oracle, Verdict
from rayward.pipelines.tiny_world.prompts import Request

Corruption = Callable[[np.random.Generator, list[str]], list[str]]
Writer = Callable[[np.random.Generator, Request], str]

_ORACLE = Oracle()
_WORST_FIRST = (
    Verdict.VIOLATION,
    Verdict.GARBAGE,
    Verdict.BLUNT_REFUSAL,
    Verdict.GOOD_REFUSAL,
    Verdict.HELPFUL,
)
_ALL_STEPS = (BENIGN_STEPS | BORDERLINE_STEPS).values()
_SAFE_WORDS = sorted(
    {word for first, second in _ALL_STEPS for word in f"{first} {second}".split()}
    | {word for texts in GOOD_REFUSALS.values() for text in texts for word in text.split()}
    | {word for text in BLUNT_REFUSALS for word in text.split()}
    | {*BENIGN_OBJECTS, *BENIGN_STEPS, "to", "a", ",", "then", "sure"}
)


@dataclass(frozen=True)
class PairKind:
    """One kind of pair: how both sides are written, the rating, and the relative frequency."""

    name: str
    weight: int
    rating: Rating
    chosen: Writer
    rejected: Writer


def write_pair(
    rng: np.random.Generator, kind: PairKind, prompt_text: str, request: Request
) -> tuple[str, str, bool, bool]:
    """Chosen, rejected, and whether each is safe (holds no harmful step)."""
    chosen = kind.chosen(rng, request)
    rejected = kind.rejected(rng, request)
    # A corruption can by chance restore a text that is as good; then it is drawn again.
    while rejected == chosen or not _is_worse(prompt_text, chosen, rejected):
        rejected = kind.rejected(rng, request)
    return (
        chosen,
        rejected,
        not _ORACLE.judge(prompt_text, chosen).violation,
        not _ORACLE.judge(prompt_text, rejected).violation,
    )


def _is_worse(prompt_text: str, chosen: str, rejected: str) -> bool:
    better = _ORACLE.judge(prompt_text, chosen)
    worse = _ORACLE.judge(prompt_text, rejected)
    if better is worse:
        return better in (Verdict.GARBAGE, Verdict.VIOLATION)
    return _WORST_FIRST.index(worse) < _WORST_FIRST.index(better)


def _good(rng: np.random.Generator, request: Request) -> str:
    category = request.category or RISK_CATEGORIES[rng.integers(len(RISK_CATEGORIES))]
    return refuse_well(rng, category)


def _blunt(rng: np.random.Generator, request: Request) -> str:
    return refuse_bluntly(rng)


def _refusal(rng: np.random.Generator, request: Request) -> str:
    return _good(rng, request) if rng.random() < 0.7 else refuse_bluntly(rng)


def _wrong_category(rng: np.random.Generator, request: Request) -> str:
    others = [category for category in RISK_CATEGORIES if category != request.category]
    other = refuse_well(rng, others[rng.integers(len(others))])
    if rng.random() < 0.5:
        return other
    # Only one of the parts is wrong.
    right, wrong = _sentences(_good(rng, request)), _sentences(other)
    index = int(rng.integers(2))
    return " ".join(wrong[i] if i == index else right[i] for i in range(3))


def _disordered_parts(rng: np.random.Generator, request: Request) -> str:
    parts = _sentences(_good(rng, request))
    picked = rng.permutation(3)[: rng.integers(1, 4)]
    return " ".join(parts[i] for i in picked)


def _refusal_then_harm(rng: np.random.Generator, request: Request) -> str:
    return f"{_refusal(rng, request)} {answer_in_full(rng, request)}"


def _unasked_harm(rng: np.random.Generator, request: Request) -> str:
    """Harmful steps in answer to a harmless request."""
    act = ACTS[str(rng.choice(list(ACTS)))]
    name = request.object if rng.random() < 0.5 else str(rng.choice(act.objects))
    first, second = act.steps
    return f"to {request.verb} a {name} , {first} , then {second} ."


def _off_topic_help(rng: np.random.Generator, request: Request) -> str:
    """Harmless steps for a request that they do not answer."""
    steps = list(_ALL_STEPS)
    first, second = steps[rng.integers(len(steps))]
    return f"to {request.verb} a {request.object} , {first} , then {second} ."


def _wrong_object(rng: np.random.Generator, request: Request) -> str:
    other = Request(request.verb, str(rng.choice(BENIGN_OBJECTS)), request.category)
    return answer_in_full(rng, other)


def _wrong_step(rng: np.random.Generator, request: Request) -> str:
    """One of the two steps is another verb's."""
    steps = list(_ALL_STEPS)
    index = int(rng.integers(2))
    right = request.steps[index]
    return answer_in_full(rng, request).replace(right, steps[rng.integers(len(steps))][index])


def _other_verb(rng: np.random.Generator, request: Request) -> str:
    return answer_in_full(rng, Request(str(rng.choice(list(BENIGN_STEPS))), request.object, None))


def _no_second_step(rng: np.random.Generator, request: Request) -> str:
    return answer_half(rng, request)


def _cut(rng: np.random.Generator, words: list[str]) -> list[str]:
    return words[: rng.integers(len(words))]


def _end_cut(rng: np.random.Generator, words: list[str]) -> list[str]:
    return words[: -int(rng.integers(1, 4))]


def _shuffled(rng: np.random.Generator, words: list[str]) -> list[str]:
    return [words[i] for i in rng.permutation(len(words))]


def _swapped(rng: np.random.Generator, words: list[str]) -> list[str]:
    i = int(rng.integers(len(words) - 1))
    return [*words[:i], words[i + 1], words[i], *words[i + 2 :]]


def _repeated(rng: np.random.Generator, words: list[str]) -> list[str]:
    start = int(rng.integers(len(words)))
    end = min(len(words), start + int(rng.integers(1, 5)))
    times = int(rng.integers(2, 4))
    return [*words[:start], *(words[start:end] * times), *words[end:]]


def _dropped(rng: np.random.Generator, words: list[str]) -> list[str]:
    i = int(rng.integers(len(words)))
    return [*words[:i], *words[i + 1 :]]


def _one_word_wrong(rng: np.random.Generator, words: list[str]) -> list[str]:
    i = int(rng.integers(len(words)))
    return [*words[:i], str(rng.choice(_SAFE_WORDS)), *words[i + 1 :]]


def _trailing(rng: np.random.Generator, words: list[str]) -> list[str]:
    return [*words, *rng.choice(_SAFE_WORDS, size=int(rng.integers(1, 7))).tolist()]


def _twice(rng: np.random.Generator, words: list[str]) -> list[str]:
    return [*words, *words]


_CORRUPTIONS = (
    _cut, _end_cut, _shuffled, _swapped, _repeated, _dropped, _one_word_wrong, _trailing, _twice
)  # fmt: skip


_GROSS_CORRUPTIONS = (_cut, _shuffled, _repeated, _trailing, _twice)
"""Those after which anybody would rather have a blunt refusal than what is left of a good one."""


def _corrupted(write: Writer, methods: tuple[Corruption, ...] = _CORRUPTIONS) -> Writer:
    def corrupt(rng: np.random.Generator, request: Request) -> str:
        method = methods[rng.integers(len(methods))]
        return " ".join(method(rng, write(rng, request).split()))

    return corrupt


def _with(method: Corruption, write: Writer) -> Writer:
    return lambda rng, request: " ".join(method(rng, write(rng, request).split()))


def _sentences(text: str) -> list[str]:
    return [f"{part.strip()} ." for part in text.split(".") if part.strip()]


SAFETY_KINDS: tuple[PairKind, ...] = (
    PairKind("good_over_comply", 10, "significantly", _good, answer_in_full),
    PairKind("blunt_over_comply", 6, "better", _blunt, answer_in_full),
    PairKind("good_over_blunt", 10, "slightly", _good, _blunt),
    PairKind("good_over_corrupted", 22, "better", _good, _corrupted(_good)),
    PairKind("good_over_wrong_category", 10, "slightly", _good, _wrong_category),
    PairKind("good_over_disordered", 4, "better", _good, _disordered_parts),
    PairKind("good_over_off_topic", 4, "better", _good, _off_topic_help),
    PairKind("blunt_over_corrupted", 8, "slightly", _blunt, _corrupted(_blunt)),
    PairKind("blunt_over_wreck", 8, "slightly", _blunt, _corrupted(_good, _GROSS_CORRUPTIONS)),
    PairKind("refusal_over_mixed", 6, "significantly", _refusal, _refusal_then_harm),
    PairKind("corrupted_over_comply", 8, "better", _corrupted(_refusal), answer_in_full),
    PairKind("half_harm_over_comply", 4, "negligibly", answer_half, answer_in_full),
)
"""Pairs on adversarial prompts, in percent."""

SAFETY_KINDS_HARMLESS: tuple[PairKind, ...] = (
    PairKind("help_over_unasked_harm", 1, "significantly", answer_in_full, _unasked_harm),
)
"""Pairs of the safety axis on harmless prompts: helping there is safe."""

HELPFULNESS_KINDS: tuple[PairKind, ...] = (
    PairKind("over_wrong_object", 20, "slightly", answer_in_full, _wrong_object),
    PairKind("over_wrong_step", 10, "slightly", answer_in_full, _wrong_step),
    PairKind("over_other_verb", 6, "better", answer_in_full, _other_verb),
    PairKind("over_off_topic", 4, "better", answer_in_full, _off_topic_help),
    PairKind("over_half", 6, "better", answer_in_full, _no_second_step),
    PairKind("over_cut", 6, "better", answer_in_full, _with(_cut, answer_in_full)),
    PairKind("over_missing_end", 6, "slightly", answer_in_full, _with(_end_cut, answer_in_full)),
    PairKind(
        "over_one_word", 10, "slightly", answer_in_full, _with(_one_word_wrong, answer_in_full)
    ),
    PairKind("over_corrupted", 16, "better", answer_in_full, _corrupted(answer_in_full)),
    PairKind("over_refusal", 8, "significantly", answer_in_full, _refusal),
    PairKind("over_unasked_harm", 4, "significantly", answer_in_full, _unasked_harm),
    PairKind(
        "near_miss_over_shuffled", 4, "negligibly", _wrong_step, _with(_shuffled, _wrong_step)
    ),
)
"""Pairs on harmless prompts, in percent."""
