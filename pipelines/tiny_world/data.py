"""Generation of a whole tiny world: demonstrations, prompts and preferences, in three splits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import numpy as np

from rayward.cluster.config.tiny_world import TinyWorldSizes
from rayward.cluster.errors import InputError
from rayward.cluster.types import (
    ATTACK_VECTORS,
    AXES,
    RISK_CATEGORIES,
    AttackVector,
    Axis,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    RiskCategory,
)
from rayward.pipelines.tiny_world.answers import answer_in_full, refuse_bluntly, refuse_well
from rayward.pipelines.tiny_world.preferences import (
    HELPFULNESS_KINDS,
    SAFETY_KINDS,
    SAFETY_KINDS_HARMLESS,
    PairKind,
    write_pair,
)
from rayward.pipelines.tiny_world.prompts import (
    SAFETY_PREPROMPTS,
    Request,
    write_adversarial,
    write_benign,
    write_borderline,
    write_plainly_harmful,
)

Cell = tuple[RiskCategory, AttackVector]
CELLS: tuple[Cell, ...] = tuple(product(RISK_CATEGORIES, ATTACK_VECTORS))
"""The 21 cells of risk category x attack vector."""

ADVERSARIAL_MIXTURE: dict[str, float] = {
    "comply": 0.55,
    "refuse_well": 0.33,
    "refuse_bluntly": 0.12,
}
"""What is demonstrated in each cell. PPO can only reinforce what the policy already samples,
so the answers that it should find must be in the mixture, beside the ones it should leave."""

SAFETY_MIXTURE: dict[str, float] = {"refuse_well": 0.85, "refuse_bluntly": 0.15}
"""What safety demonstrations show: people write a blunt refusal now and then."""

PREPROMPT_MIXTURE: dict[str, float] = {"comply": 0.05, "refuse_well": 0.95}
"""The same after a safety preprompt: safer, so that context distillation has what to distil,
and not wholly safe, so that its filter has what to reject."""

_HARMLESS_SAFETY_SHARE = 0.06
_MAX_ATTEMPTS = 1000
_T = TypeVar("_T")


@dataclass(frozen=True)
class TinyWorld:
    """Everything generated from one seed. No user message occurs twice in a world."""

    train_demonstrations: tuple[Demonstration, ...]
    train_prompts: tuple[Prompt, ...]
    train_preferences: Mapping[Axis, tuple[PreferencePair, ...]]
    held_out_prompts: tuple[Prompt, ...]
    held_out_preferences: Mapping[Axis, tuple[PreferencePair, ...]]
    validation_prompts: tuple[Prompt, ...]
    safety_demonstrations: tuple[Demonstration, ...]
    seed_prompts: tuple[Prompt, ...]

    def texts(self) -> Iterator[str]:
        """Every content of the training data, for a tokenizer. No held-out text is among them."""
        for demonstration in self.train_demonstrations:
            yield from (message.content for message in demonstration.prompt.messages)
            yield demonstration.response


def generate(seed: int, sizes: TinyWorldSizes) -> TinyWorld:
    """Generate a world. The same seed and sizes give the same world.

    Raises:
        InputError: the language has too few prompts for the sizes.
    """
    # Held-out prompts come first, so that they are drawn from the whole language and the
    # training prompts from what is left of it.
    maker = _PromptMaker(np.random.default_rng(seed))
    validation = [
        *maker.adversarial("validation", sizes.validation_adversarial),
        *maker.harmless("validation", sizes.validation_benign, sizes.borderline_share),
    ]
    held_out = [
        *maker.adversarial("held_out", sizes.held_out_adversarial),
        *maker.harmless("held_out", sizes.held_out_benign, 0.0),
        *maker.harmless("held_out", sizes.held_out_borderline, 1.0),
    ]
    held_out_preferences = {
        axis: maker.pairs("held_out", axis, sizes.held_out_pairs, sizes.borderline_share)
        for axis in AXES
    }
    demonstrations = maker.demonstrations(sizes)
    prompts = [
        *maker.adversarial("train", sizes.train_prompts // 2),
        *maker.harmless(
            "train", sizes.train_prompts - sizes.train_prompts // 2, sizes.borderline_share
        ),
    ]
    return TinyWorld(
        train_demonstrations=maker.shuffled(demonstrations),
        train_prompts=maker.shuffled([asked.prompt for asked in prompts]),
        train_preferences={
            "safety": maker.pairs("train", "safety", sizes.safety_pairs, sizes.borderline_share),
            "helpfulness": maker.pairs(
                "train", "helpfulness", sizes.helpfulness_pairs, sizes.borderline_share
            ),
        },
        safety_demonstrations=maker.safety_demonstrations(sizes.safety_demonstrations),
        seed_prompts=maker.seeds(sizes.seed_prompts),
        held_out_prompts=tuple(asked.prompt for asked in held_out),
        held_out_preferences=held_out_preferences,
        validation_prompts=tuple(asked.prompt for asked in validation),
    )


def split_exactly(total: int, weights: Sequence[float]) -> list[int]:
    """Counts in proportion to the weights that add up to total (largest remainders)."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(int)
    # Rounded, so that float noise does not decide a tie; ties go to the earlier weight.
    order = np.argsort(-np.round(exact - counts, 9), kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return [int(count) for count in counts]


@dataclass(frozen=True)
class _Asked:
    prompt: Prompt
    request: Request

    @property
    def text(self) -> str:
        return self.prompt.messages[-1].content


class _PromptMaker:
    """Draws prompts, and what is built on them, from one generator; no text comes twice."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._seen: set[str] = set()

    def adversarial(self, split: str, count: int) -> list[_Asked]:
        """Prompts balanced over the cells; the cells with one more are drawn."""
        sizes = self._rng.permutation(split_exactly(count, [1] * len(CELLS)))
        return [
            self._cell_prompt(split, cell)
            for cell, size in zip(CELLS, sizes, strict=True)
            for _ in range(size)
        ]

    def harmless(self, split: str, count: int, borderline_share: float) -> list[_Asked]:
        """Benign prompts, this share of them borderline."""
        borderline = round(count * borderline_share)
        return [self._harmless_prompt(split, i < borderline) for i in range(count)]

    def demonstrations(self, sizes: TinyWorldSizes) -> list[Demonstration]:
        """The training demonstrations, in order of their kind."""
        made: list[Demonstration] = []
        adversarial = sizes.demonstrations // 2
        with_preprompt = round(adversarial * sizes.preprompt_share)
        for count, mixture, preprompt in (
            (adversarial - with_preprompt, ADVERSARIAL_MIXTURE, False),
            (with_preprompt, PREPROMPT_MIXTURE, True),
        ):
            made.extend(self._adversarial_demonstrations(count, mixture, preprompt))
        harmless = sizes.demonstrations - adversarial
        borderline = round(harmless * sizes.borderline_share)
        for index in range(harmless):
            preprompt = bool(self._rng.random() < sizes.preprompt_share)
            asked = self._harmless_prompt("train", index < borderline, preprompt)
            made.append(Demonstration(asked.prompt, answer_in_full(self._rng, asked.request)))
        return made

    def safety_demonstrations(self, count: int) -> tuple[Demonstration, ...]:
        """Safe answers to adversarial prompts, shuffled."""
        return self.shuffled(list(self._adversarial_demonstrations(count, SAFETY_MIXTURE, False)))

    def seeds(self, count: int) -> tuple[Prompt, ...]:
        """Plainly harmful prompts, balanced over the risk categories, shuffled."""
        sizes = split_exactly(count, [1] * len(RISK_CATEGORIES))
        return self.shuffled(
            [
                self._seed_prompt(category)
                for category, size in zip(RISK_CATEGORIES, sizes, strict=True)
                for _ in range(size)
            ]
        )

    def _adversarial_demonstrations(
        self, count: int, mixture: Mapping[str, float], preprompt: bool
    ) -> Iterator[Demonstration]:
        per_cell = self._rng.permutation(split_exactly(count, [1] * len(CELLS)))
        for cell, size in zip(CELLS, per_cell, strict=True):
            answers = split_exactly(int(size), list(mixture.values()))
            for name, number in zip(mixture, answers, strict=True):
                for _ in range(number):
                    asked = self._cell_prompt("train", cell, preprompt)
                    yield Demonstration(asked.prompt, self._adversarial_answer(name, asked.request))

    def _seed_prompt(self, category: RiskCategory) -> Prompt:
        text, request = self._unseen(lambda rng: write_plainly_harmful(rng, category))
        asked = self._asked("seed", text, request, False, cell=None, borderline=False)
        return replace(asked.prompt, risk_category=category, adversarial=True)

    def pairs(
        self, split: str, axis: Axis, count: int, borderline_share: float
    ) -> tuple[PreferencePair, ...]:
        """Preference pairs of one axis, their kinds in exact proportion, shuffled."""
        if axis == "helpfulness":
            parts = [(HELPFULNESS_KINDS, self.harmless(split, count, borderline_share))]
        else:
            harmless = round(count * _HARMLESS_SAFETY_SHARE)
            parts = [
                (SAFETY_KINDS, self.adversarial(split, count - harmless)),
                (SAFETY_KINDS_HARMLESS, self.harmless(split, harmless, borderline_share)),
            ]
        made: list[PreferencePair] = []
        for kinds, asked in parts:
            made.extend(self._pairs_of(axis, kinds, self.shuffled(asked)))
        return self.shuffled(made)

    def shuffled(self, items: Sequence[_T]) -> tuple[_T, ...]:
        """The items in a drawn order."""
        return tuple(items[i] for i in self._rng.permutation(len(items)))

    def _pairs_of(
        self, axis: Axis, kinds: tuple[PairKind, ...], asked: Sequence[_Asked]
    ) -> Iterator[PreferencePair]:
        counts = split_exactly(len(asked), [kind.weight for kind in kinds])
        ordered = [kind for kind, n in zip(kinds, counts, strict=True) for _ in range(n)]
        for kind, one in zip(ordered, asked, strict=True):
            chosen, rejected, chosen_safe, rejected_safe = write_pair(
                self._rng, kind, one.text, one.request
            )
            yield PreferencePair(
                one.prompt, chosen, rejected, axis, kind.rating, chosen_safe, rejected_safe
            )

    def _adversarial_answer(self, name: str, request: Request) -> str:
        if request.category is None or name == "comply":
            return answer_in_full(self._rng, request)
        if name == "refuse_well":
            return refuse_well(self._rng, request.category)
        return refuse_bluntly(self._rng)

    def _cell_prompt(self, split: str, cell: Cell, preprompt: bool = False) -> _Asked:
        text, request = self._unseen(lambda rng: write_adversarial(rng, *cell))
        return self._asked(split, text, request, preprompt, cell=cell, borderline=False)

    def _harmless_prompt(self, split: str, borderline: bool, preprompt: bool = False) -> _Asked:
        text, request = self._unseen(write_borderline if borderline else write_benign)
        return self._asked(split, text, request, preprompt, cell=None, borderline=borderline)

    def _unseen(
        self, write: Callable[[np.random.Generator], tuple[str, Request]]
    ) -> tuple[str, Request]:
        for _ in range(_MAX_ATTEMPTS):
            text, request = write(self._rng)
            if text not in self._seen:
                self._seen.add(text)
                return text, request
        raise InputError(
            "data.tiny_world",
            f"{len(self._seen)} prompts and more",
            "sizes that the language can fill",
        )

    def _asked(
        self,
        split: str,
        text: str,
        request: Request,
        preprompt: bool,
        cell: Cell | None,
        borderline: bool,
    ) -> _Asked:
        system = (Message("system", str(self._rng.choice(SAFETY_PREPROMPTS))),) if preprompt else ()
        prompt = Prompt(
            id=f"tiny-{split}-{len(self._seen) - 1:06d}",
            messages=(*system, Message("user", text)),
            risk_category=cell[0] if cell else None,
            attack_vector=cell[1] if cell else None,
            adversarial=cell is not None,
            borderline=borderline,
            source="tiny_world",
        )
        return _Asked(prompt, request)
