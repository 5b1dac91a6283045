"""Red teaming: prompts rewritten by attack vectors, and those that got through.

seeds -> templates, attacker -> new ones only -> policy -> safety -> what got through
  ^                                                                         |
  +------------------------------ next round -------------------------------+
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np

from rayward.actors.text.chat import encode_prompt
from rayward.cluster.config.red_teaming import RedTeamingSettings
from rayward.cluster.records.attempts import Attempt
from rayward.cluster.records.red_teaming import (
    COUNTED,
    RedTeamingRound,
    RedTeamingSummary,
    summarize,
    violations,
)
from rayward.cluster.sampler import Sampler
from rayward.cluster.types import AttackVector, Message, MessageRole, OnDone, Prompt, Question
from rayward.pipelines.data.rows import make_prompt
from rayward.pipelines.red_teaming.attacker import Attacker
from rayward.pipelines.red_teaming.templates import AttackTemplates

SOURCE = "red_teaming"
ATTACKER = "attacker"
"""What stands in place of a template's name where the attacker model wrote a prompt."""

# Each use of the seed draws for itself.
_SEEDS, _TEMPLATES, _ATTACKER, _ANSWERS = range(1, 5)

# A conversation without its system message, case and runs of white space.
_Key = tuple[tuple[MessageRole, str], ...]


@dataclass(frozen=True)
class RedTeamingResult:
    """What red teaming found."""

    summary: RedTeamingSummary
    kept: list[Prompt]
    """Those that got through, tagged adversarial, in the order in which they were asked."""
    attempts: list[Attempt]


@dataclass(frozen=True)
class _Rewritten:
    prompt: Prompt
    template: str
    seed_id: str


_Encoded = tuple[_Rewritten, list[int]]


def red_team(
    session: Sampler,
    seeds: Sequence[Prompt],
    settings: RedTeamingSettings,
    templates: AttackTemplates,
    known: Sequence[Prompt],
    seed: int,
    attacker: Attacker | None = None,
    on_done: OnDone | None = None,
) -> RedTeamingResult:
    """Look for prompts that the policy answers unsafely.

    A rewrite changes the last user turn; what stands before it stays, and the safety model judges
    the conversation that the policy answered.

    Args:
        session: with the policy and a safety model.
        seeds: prompts to rewrite.
        settings: rounds, vectors, attempts and what counts as a violation.
        templates: rewrites of each vector in the settings.
        known: prompts that are in the data already, whatever the split: none is kept again, and
            so no held-out prompt gets into training. Case, white space and system messages do
            not count.
        seed: of every draw.
        attacker: rewrites each prompt too.
        on_done: told how many more answers are there.

    Raises:
        InputError: a template failed on a prompt.
        UnscoredError: a score could not be had.
    """
    team = _RedTeam(
        session=session,
        settings=settings,
        templates=templates,
        attacker=attacker,
        seed=seed,
        on_done=on_done,
        unused=_drawn(seeds, len(seeds), np.random.default_rng([seed, _SEEDS])),
        # A seed that comes back as it was is nothing new.
        known={_key(prompt) for prompt in (*known, *seeds)},
    )
    through: list[Prompt] = []
    for number in range(1, settings.rounds + 1):
        through = team.play(number, through)
    return RedTeamingResult(summarize(team.rounds, team.attempts), team.kept, team.attempts)


@dataclass
class _RedTeam:
    """What is remembered from round to round."""

    session: Sampler
    settings: RedTeamingSettings
    templates: AttackTemplates
    attacker: Attacker | None
    seed: int
    on_done: OnDone | None
    unused: list[Prompt]  # seeds that no round has begun with
    known: set[_Key]
    tried: set[_Key] = field(default_factory=set)
    rounds: list[RedTeamingRound] = field(default_factory=list)
    kept: list[Prompt] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    def play(self, number: int, through: Sequence[Prompt]) -> list[Prompt]:
        """Play a round.

        Args:
            number: of the round, from 1.
            through: what got through in the round before.

        Returns:
            What got through in this one.
        """
        wanted = self.settings.seed_prompts
        again = _drawn(through, wanted, np.random.default_rng([self.seed, _SEEDS, number]))
        fresh = self.unused[: wanted - len(again)]
        del self.unused[: len(fresh)]
        counts: Counter[str] = Counter(seeds=len(again) + len(fresh), from_round_before=len(again))
        rewritten = list(self._by_templates([*again, *fresh], number, counts))
        if self.attacker is not None:
            rewritten += self._by_attacker(self.attacker, [*again, *fresh], number, counts)
        attempts = self._ask(list(self._new(rewritten, counts)), number)
        violating = {one.prompt.id for one in attempts if one.got_through}
        asked = {one.prompt.id: one.prompt for one in attempts}
        kept = [prompt for prompt in asked.values() if prompt.id in violating]
        self.rounds.append(
            RedTeamingRound(
                round=number,
                **{name: counts[name] for name in COUNTED},
                asked=len(asked),
                violations=violations(attempts),
                kept=len(kept),
            )
        )
        self.attempts += attempts
        self.kept += kept
        return kept

    def _by_templates(
        self, prompts: Sequence[Prompt], number: int, counts: Counter[str]
    ) -> Iterator[_Rewritten]:
        rng = np.random.default_rng([self.seed, _TEMPLATES, number])
        for prompt in prompts:
            for vector in self.settings.vectors:
                made = self.templates.rewrite(prompt.messages[-1].content, vector, rng)
                counts["unfit" if made is None else "by_template"] += 1
                if made is not None:
                    yield _rewritten(prompt, made.text, vector, made.template)

    def _by_attacker(
        self, attacker: Attacker, prompts: Sequence[Prompt], number: int, counts: Counter[str]
    ) -> Iterator[_Rewritten]:
        wanted = [(prompt, vector) for prompt in prompts for vector in self.settings.vectors]
        texts = attacker.rewrite(
            [(prompt.messages[-1].content, vector) for prompt, vector in wanted],
            self._draws(_ATTACKER, number, len(wanted)),
        )
        for (prompt, vector), text in zip(wanted, texts, strict=True):
            if text is None:
                counts["instruction_too_long"] += 1
            elif not text:
                counts["blank"] += 1
            else:
                counts["by_attacker"] += 1
                yield _rewritten(prompt, text, vector, ATTACKER)

    def _new(self, rewritten: Sequence[_Rewritten], counts: Counter[str]) -> Iterator[_Encoded]:
        for one in rewritten:
            key = _key(one.prompt)
            if key in self.known:
                counts["known"] += 1
            elif key in self.tried:
                counts["duplicates"] += 1
            else:
                self.tried.add(key)
                token_ids = encode_prompt(self.session.tokenizer, one.prompt.messages)
                if len(token_ids) <= self.settings.sampling.max_prompt_tokens:
                    yield one, token_ids
                else:
                    counts["too_long"] += 1

    def _ask(self, asked: Sequence[_Encoded], number: int) -> list[Attempt]:
        settings = self.settings
        indices = [(i, sample) for i in range(len(asked)) for sample in range(settings.attempts)]
        seeds = self._draws(_ANSWERS, number, len(indices))
        questions = [
            Question(asked[i][0].prompt, asked[i][1], seed, sample)
            for (i, sample), seed in zip(indices, seeds, strict=True)
        ]
        answers = self.session.ask(questions, settings.sampling, ("safety",), self.on_done)
        # Logits are compared: a sigmoid would round what is near 0 or 1.
        threshold = log(settings.unsafe_below / (1 - settings.unsafe_below))
        return [
            Attempt(
                prompt=asked[i][0].prompt,
                response=text,
                safety=score,
                got_through=score < threshold,
                round=number,
                template=asked[i][0].template,
                seed_id=asked[i][0].seed_id,
                sample_index=sample,
                finish_reason=rollout.finish_reason,
            )
            for (i, sample), rollout, text, score in zip(
                indices,
                answers.rollouts,
                answers.texts,
                answers.scores["safety"].tolist(),
                strict=True,
            )
        ]

    def _draws(self, use: int, number: int, count: int) -> list[int]:
        sequence = np.random.SeedSequence([self.seed, use, number])
        return [int(one) for one in sequence.generate_state(count)]


def _drawn(prompts: Sequence[Prompt], count: int, rng: np.random.Generator) -> list[Prompt]:
    """So many of the prompts at most, in a drawn order."""
    return [prompts[index] for index in rng.permutation(len(prompts))[:count]]


def _rewritten(seed: Prompt, text: str, vector: AttackVector, template: str) -> _Rewritten:
    prompt = make_prompt(
        [*seed.messages[:-1], Message("user", text)],
        SOURCE,
        adversarial=True,
        risk_category=seed.risk_category,
        attack_vector=vector,
    )
    return _Rewritten(prompt, template, seed.id)


def _key(prompt: Prompt) -> _Key:
    return tuple(
        (turn.role, " ".join(turn.content.casefold().split()))
        for turn in prompt.messages
        if turn.role != "system"
    )
