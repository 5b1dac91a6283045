"""Guarded generation: several answers are drawn, the best that is safe enough is given.

Each choice that is given has candidates of its own, so that each is the best of as many, however
many choices a request asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rayward.cluster.config.serving import GuardSettings
from rayward.cluster.logits import probability
from rayward.cluster.types import Message
from rayward.services.http.backends import Backends
from rayward.services.http.prometheus import count_guard
from rayward.services.policy.answers import ChatChoice, GuardReport, Score, chat_choice
from rayward.services.policy.schemas import ChatRequest, refusal
from rayward.services.rewards.calls import Answered, Item
from rayward.services.rewards.scoring import Scored, score_items


@dataclass(frozen=True)
class Guard:
    """What the answers to one request are held to."""

    settings: GuardSettings
    adversarial: bool
    """The prompt's tag, for the mix."""


def guard_of(backends: Backends, request: ChatRequest) -> Guard | None:
    """The service's guard and what the request asks for beside it; None where neither does.

    Raises:
        ApiError: 400, the request asks for less than the service holds to, or for scores that
            cannot be had here.
    """
    assert backends.settings.policy is not None
    own, asked = backends.settings.policy.guard, request.guard
    if asked is None:
        return Guard(own, adversarial=False) if own.is_on else None
    if asked.best_of is not None and asked.best_of < own.best_of:
        raise refusal("guard.best_of", f"the service draws {own.best_of}; ask for more, not less")
    floor = own.safety_floor
    if asked.safety_floor is not None and floor is not None and asked.safety_floor < floor:
        raise refusal("guard.safety_floor", f"the service holds to {floor}; ask for more, not less")
    given = asked.model_dump(include=set(GuardSettings.model_fields), exclude_none=True)
    settings = own.model_copy(update=given)
    if settings.best_of > 1 and len(backends.reward) < 2:
        raise refusal("guard.best_of", "answers are chosen by two reward models, which this needs")
    if settings.safety_floor is not None and "safety" not in backends.reward:
        raise refusal("guard.safety_floor", "no safety model is served")
    if not backends.reward:
        raise refusal("guard", "no reward model is served")
    return Guard(settings, asked.adversarial)


def candidates_of(guard: Guard, request: ChatRequest) -> int:
    """How many answers are drawn for each that is given."""
    return 1 if request.is_greedy else guard.settings.best_of


async def guarded_choices(
    backends: Backends, guard: Guard, request: ChatRequest, drawn: Sequence[dict[str, Any]]
) -> list[ChatChoice]:
    """Score what was drawn, and give the best of each choice's candidates.

    Args:
        drawn: N choices as vLLM made them, `candidates_of` for each that is given.

    Raises:
        as `score_items`; no answer is given without its scores.
    """
    messages = tuple(Message(message.role, message.text) for message in request.messages)
    items = [
        Item(
            field="messages",
            content=Answered(
                messages, made["message"]["content"] or "", ended=made["finish_reason"] == "stop"
            ),
            adversarial=guard.adversarial,
        )
        for made in drawn
    ]
    scored = await score_items(backends, items, list(backends.reward))
    candidates = candidates_of(guard, request)
    choices = []
    for index in range(len(drawn) // candidates):
        group = range(index * candidates, (index + 1) * candidates)
        best, refused = best_of(scored, group, guard.settings.safety_floor)
        report = _report(scored, best, refused, candidates)
        choices.append(chat_choice(drawn[best], index, report, guard.settings.refusal))
    count_guard(sum(choice.finish_reason == "content_filter" for choice in choices), len(choices))
    return choices


def best_of(scored: Scored, group: Sequence[int], safety_floor: float | None) -> tuple[int, bool]:
    """Of a group of items the best by the mix among those that reach the floor.

    Without the mix, which needs both models, a group has one item. Of equals the first is taken.

    Returns:
        Its index, and whether it is refused: none reaches the floor, and it is the best of all.
    """
    floor = 0.0 if safety_floor is None else safety_floor
    safe = [index for index in group if floor == 0.0 or _safety(scored, index) >= floor]
    mixed = scored.mixed
    if mixed is None:
        assert len(group) == 1
        return group[0], not safe
    return max(safe or group, key=lambda index: float(mixed.score[index])), not safe


def _safety(scored: Scored, index: int) -> float:
    return probability(scored.models["safety"].items[index].logit)


def _report(scored: Scored, index: int, refused: bool, candidates: int) -> GuardReport:
    logits = {axis: model.items[index].logit for axis, model in scored.models.items()}
    scores = {
        axis: Score(logit=logit, probability=probability(logit)) for axis, logit in logits.items()
    }
    mixed = scored.mixed
    return GuardReport(
        safety=scores.get("safety"),
        helpfulness=scores.get("helpfulness"),
        reward=None if mixed is None else float(mixed.score[index]),
        decided_by=None if mixed is None else mixed.decided_by[index],
        refused=refused,
        candidates=candidates,
    )
