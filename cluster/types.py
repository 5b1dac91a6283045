"""The data types that pass between the rooms.

Index t is always a token, logprobs are in nats, scores are logits: higher is better.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

RiskCategory = Literal[
    "illicit_and_criminal_activities",
    "hateful_and_harmful_activities",
    "unqualified_advice",
]
AttackVector = Literal[
    "psychological_manipulation",
    "logic_manipulation",
    "syntactic_manipulation",
    "semantic_manipulation",
    "perspective_manipulation",
    "non_english",
    "other",
]
Axis = Literal["safety", "helpfulness"]
Rating = Literal["significantly", "better", "slightly", "negligibly"]
MessageRole = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]

RISK_CATEGORIES: tuple[RiskCategory, ...] = get_args(RiskCategory)
ATTACK_VECTORS: tuple[AttackVector, ...] = get_args(AttackVector)
AXES: tuple[Axis, ...] = get_args(Axis)
RATINGS: tuple[Rating, ...] = get_args(Rating)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: MessageRole
    content: str


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for the assistant's answer.

    `adversarial` is the tag that the piecewise reward reads (Llama 2, section 4.2.3).
    `borderline` marks a benign prompt that is worded like an adversarial one.
    """

    id: str
    messages: tuple[Message, ...]
    risk_category: RiskCategory | None
    attack_vector: AttackVector | None
    adversarial: bool
    borderline: bool
    source: str


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the answer to imitate."""

    prompt: Prompt
    response: str


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, of which `chosen` was preferred on `axis`."""

    prompt: Prompt
    chosen: str
    rejected: str
    axis: Axis
    rating: Rating | None
    chosen_safe: bool | None
    rejected_safe: bool | None


@dataclass(frozen=True)
class Rollout:
    """One sampled answer, in tokens. R is the response length, L - response_start."""

    prompt: Prompt
    sample_index: int
    policy_version: int
    token_ids: Int64Array  # [L]: prompt, then response
    response_start: int
    sampler_logprobs: Float32Array  # [R], at the sampling temperature
    finish_reason: FinishReason

    @property
    def response_ids(self) -> Int64Array:
        """The response's token ids, int64 [R]."""
        return self.token_ids[self.response_start :]


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout with everything that the models say of it."""

    rollout: Rollout
    policy_logprobs: Float32Array  # [R], the learner's, before the update
    reference_logprobs: Float32Array  # [R]
    values: Float32Array  # [R], zeros where there is no critic
    safety: float  # logit
    helpfulness: float  # logit
    decided_by: str  # which reward model decided, by the reward mix, or "both"
    safety_weight: float  # of the safety logit in the mix
    helpfulness_weight: float  # of the helpfulness logit in the mix
    reward: float  # the mix's sequence reward, as it enters the token rewards


@dataclass(frozen=True)
class Experience:
    """A scored rollout ready to learn from."""

    scored: ScoredRollout
    token_rewards: Float32Array  # [R]
    advantages: Float32Array  # [R]
    returns: Float32Array  # [R]


@dataclass(frozen=True)
class Scores:
    """What all models say of N rollouts, in the rollouts' order."""

    rollouts: list[Rollout]
    policy_logprobs: list[Float32Array]  # N of [R_i]
    reference_logprobs: list[Float32Array]  # N of [R_i]
    values: list[Float32Array]  # N of [R_i], zeros where there is no critic
    safety: Float32Array  # [N] logits
    helpfulness: Float32Array  # [N] logits


OnDone = Callable[[int], None]
"""Told how many more are done."""


@dataclass(frozen=True)
class Question:
    """One answer that is wanted."""

    prompt: Prompt
    token_ids: list[int]
    """The encoded prompt, the chat template's generation prompt included."""
    seed: int
    """Of this answer: the same seed and weights give the same tokens."""
    sample_index: int = 0
    """Its place among the answers to the same prompt."""


@dataclass(frozen=True)
class Answers:
    """N answers in the order of their questions."""

    rollouts: list[Rollout]
    texts: list[str]
    scores: Mapping[Axis, Float32Array]
    """[N] logits by the axes that were asked for."""
