"""Targeted distillation with a real sampler and a real safety model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayward.actors.sampling.policy_session import PolicySession
from rayward.cluster.config.context_distillation import ContextDistillationSettings
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.errors import InputError
from rayward.cluster.records.distilled import (
    UNCATEGORISED,
    DistilledSample,
    Preprompt,
    read_distilled,
    write_distilled,
)
from rayward.cluster.types import RISK_CATEGORIES, Answers, Message, Prompt, Question, Rollout
from rayward.pipelines.context_distillation.distil import distil, fault
from rayward.pipelines.context_distillation.preprompts import Preprompts, load_preprompts
from tests.tiny import tiny_tokenizer

SAMPLING = SamplingSettings(max_prompt_tokens=440, max_response_tokens=40)
SETTINGS = ContextDistillationSettings(sampling=SAMPLING, preprompts_per_prompt=3)


def prompts(count: int, adversarial: bool = True) -> list[Prompt]:
    return [
        Prompt(
            id=f"p{i}",
            messages=(Message("user", f"how do i steal {i} cars ?"),),
            risk_category=RISK_CATEGORIES[i % 2] if i else None,
            attack_vector=None,
            adversarial=adversarial,
            borderline=False,
            source="test",
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def preprompts() -> Preprompts:
    return load_preprompts(None, tiny_world=False)


@pytest.fixture(scope="module")
def tried(both_session: PolicySession, preprompts: Preprompts) -> list[DistilledSample]:
    told: list[int] = []
    samples, report = distil(both_session, prompts(40), preprompts, SETTINGS, 3, told.append)
    assert sum(told) == 40 + 3 * 40
    assert report.prompts == 40
    assert report.too_long == 0
    assert report.cut > 0, "this policy rambles"
    assert report.kept.total == len(samples)
    assert report.kept.count == sum(one.kept for one in samples)
    assert sum(group.kept.total for group in report.by_category.values()) == len(samples)
    assert sum(group.kept.count for group in report.by_kind.values()) == report.kept.count
    known = {UNCATEGORISED, *RISK_CATEGORIES[:2]}
    assert set(report.by_category) <= known
    return samples


def test_strictly_higher_or_the_original_stays(tried: list[DistilledSample]) -> None:
    assert {one.kept for one in tried} == {True, False}
    for one in tried:
        assert one.kept is (one.distilled_score > one.original_score)


def test_no_preprompt_is_learned(tried: list[DistilledSample]) -> None:
    asked = {prompt.id: prompt for prompt in prompts(40)}
    for one in tried:
        assert one.preprompt.text not in one.distilled
        assert one.demonstration.prompt == asked[one.prompt.id]
        assert one.demonstration.response == one.distilled


def test_benign_prompts_are_not_touched(
    both_session: PolicySession, preprompts: Preprompts
) -> None:
    with pytest.raises(ValueError, match="adversarial"):
        distil(both_session, prompts(2, False), preprompts, SETTINGS, 3, lambda more: None)


def test_prompts_that_do_not_fit_are_counted(
    both_session: PolicySession, preprompts: Preprompts
) -> None:
    short = SAMPLING.model_copy(update={"max_prompt_tokens": 40})
    none = SETTINGS.model_copy(update={"sampling": short})
    with pytest.raises(InputError, match="room for at least one adversarial prompt"):
        distil(both_session, prompts(3), preprompts, none, 3, lambda more: None)


def test_what_was_tried_survives_the_disk(tmp_path: Path, tried: list[DistilledSample]) -> None:
    write_distilled(tmp_path, tried)
    assert read_distilled(tmp_path) == tried


def test_a_preprompt_that_is_said_is_not_learned() -> None:
    preprompt = Preprompt("generic/0", "generic", "You are a  safe assistant.")
    assert fault("Well, you ARE a safe\nassistant. So no.", preprompt, ended=True) == "leaked"
    assert fault("You are safe.", preprompt, ended=True) is None
    assert fault("You are safe.", preprompt, ended=False) == "cut"
    assert fault(" \n", preprompt, ended=True) == "empty"


class Session:
    """Stands for a policy that says `original`, and `distilled` behind a preprompt."""

    def __init__(self, original: tuple[str, float], distilled: tuple[str, float]) -> None:
        self.tokenizer = tiny_tokenizer()
        self._original, self._distilled = original, distilled

    def ask(self, questions: Sequence[Question], *_: object) -> Answers:
        told = [
            self._distilled if one.prompt.messages[0].role == "system" else self._original
            for one in questions
        ]
        rollouts = [
            Rollout(
                one.prompt,
                0,
                0,
                np.array([*one.token_ids, 1]),
                len(one.token_ids),
                np.zeros(1, np.float32),
                "stop",
            )
            for one in questions
        ]
        scores = np.array([score for _, score in told], dtype=np.float32)
        return Answers(rollouts, [text for text, _ in told], {"safety": scores})

    def score_rollouts(self, rollouts: Sequence[Rollout], *_: object) -> Answers:
        score = np.full(len(rollouts), self._distilled[1], dtype=np.float32)
        return Answers(list(rollouts), [], {"safety": score})


@pytest.mark.parametrize(
    ("distilled", "kept"),
    [
        (("No.", float(np.nextafter(np.float32(1.5), np.float32(2)))), True),
        (("No.", 1.5), False),
        (("No.", 1.0), False),
        # The same words in other tokens are no better, whatever the safety model makes of them.
        (("Sorry.", 2.0), False),
    ],
)
def test_a_tie_is_not_learned(
    preprompts: Preprompts, distilled: tuple[str, float], kept: bool
) -> None:
    session: Any = Session(("Sorry.", 1.5), distilled)
    samples, report = distil(session, prompts(2), preprompts, SETTINGS, 3, lambda more: None)
    assert [one.kept for one in samples] == [kept] * 2
    assert report.kept.count == 2 * kept
