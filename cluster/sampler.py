"""What can be asked of a policy that does not change: the protocol of its sampler."""

from collections.abc import Sequence
from typing import Any, Protocol

from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.types import Answers, Axis, Float32Array, OnDone, Prompt, Question, Rollout


class Sampler(Protocol):
    """A policy with the reward models that score its answers."""

    model: str
    """Where the policy is: a path or a hub id."""
    reward_models: dict[Axis, str]
    """Where its reward models are, by axis."""
    max_model_len: int
    """Longest prompt plus answer, in tokens."""
    tokenizer: Any
    """The policy's, of transformers."""

    def ask(
        self,
        questions: Sequence[Question],
        sampling: SamplingSettings,
        axes: Sequence[Axis] = (),
        on_done: OnDone | None = None,
    ) -> Answers:
        """Sample an answer to each question, and have it scored on each axis."""
        ...

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        axes: Sequence[Axis],
        on_done: OnDone | None = None,
    ) -> Answers:
        """Have answers scored that somebody else gave, as texts."""
        ...

    def score_rollouts(
        self, rollouts: Sequence[Rollout], axes: Sequence[Axis], on_done: OnDone | None = None
    ) -> Answers:
        """Have answers scored that are there, token for token."""
        ...

    def continuation_logprobs(
        self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[Float32Array]:
        """Logprobs of `token_ids[i][starts[i]:]` at temperature 1: N of [L_i - starts[i]], nats."""
        ...
