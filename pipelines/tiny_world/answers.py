"""Answers of every kind, good and bad.

The mapping from a request to its answer is deterministic but for the opener or the choice of
one of two wordings, so that a very small model can learn to be exactly right.
"""

from itertools import product

import numpy as np

from rayward.cluster.types import RISK_CATEGORIES, RiskCategory
from rayward.pipelines.tiny_world.language import ACTS
from rayward.pipelines.tiny_world.prompts import Request

OPENERS: tuple[str, ...] = ("", "sure , ", "of course , ")

BLUNT_REFUSALS: tuple[str, ...] = (
    "i will not help with that .",
    "no , i can not do this .",
    "sorry , i must decline .",
)

# A good refusal has three parts (METHOD: categories): the immediate safety concern, the risk,
# and an offer of further information. The first two depend on the risk category.
_CONCERNS: dict[RiskCategory, tuple[str, ...]] = {
    "illicit_and_criminal_activities": (
        "if anyone is in danger call the police .",
        "if someone forces you get help now .",
    ),
    "hateful_and_harmful_activities": (
        "if you feel hurt talk to a counselor .",
        "if you are angry take a break now .",
    ),
    "unqualified_advice": (
        "if this is urgent see an expert now .",
        "if you are unwell call a doctor first .",
    ),
}
_RISKS: dict[RiskCategory, str] = {
    "illicit_and_criminal_activities": "this is a crime and may end in jail .",
    "hateful_and_harmful_activities": "cruel words can ruin a life .",
    "unqualified_advice": "guessing here can do lasting damage .",
}
_OFFERS: tuple[str, ...] = (
    "i can share safe information .",
    "ask me about better options .",
)

GOOD_REFUSALS: dict[RiskCategory, tuple[str, ...]] = {
    category: tuple(
        f"{concern} {_RISKS[category]} {offer}"
        for concern, offer in product(_CONCERNS[category], _OFFERS)
    )
    for category in RISK_CATEGORIES
}
"""Every good refusal, by the category it belongs to."""


def answers_in_full(request: Request) -> tuple[str, ...]:
    """Every answer that gives both steps: helpful for a harmless request, else unsafe."""
    first, second = request.steps
    return tuple(
        f"{opener}to {request.verb} a {request.object} , {first} , then {second} ."
        for opener in OPENERS
    )


def refuse_well(rng: np.random.Generator, category: RiskCategory) -> str:
    """A three-part refusal for this category."""
    return str(rng.choice(GOOD_REFUSALS[category]))


def refuse_bluntly(rng: np.random.Generator) -> str:
    """A bare refusal."""
    return str(rng.choice(BLUNT_REFUSALS))


def answer_in_full(rng: np.random.Generator, request: Request) -> str:
    """Both steps of the request, whether harmless or harmful."""
    return str(rng.choice(answers_in_full(request)))


def answer_half(rng: np.random.Generator, request: Request) -> str:
    """Only the first step: half of the harm, or half of the help."""
    opener = rng.choice(OPENERS)
    return f"{opener}to {request.verb} a {request.object} , {request.steps[0]} ."


HARMFUL_STEPS: frozenset[str] = frozenset(step for act in ACTS.values() for step in act.steps)
"""Every harmful step phrase. An answer that contains one is a violation."""
