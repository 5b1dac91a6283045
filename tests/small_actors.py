"""Actors for tests. Ray's workers import them by name, which they cannot from a test file."""

import threading
import time
from collections.abc import Sequence

import numpy as np
import ray

from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.types import Prompt, Rollout


class Where:
    """Says which placement group it runs in."""

    def __init__(self, name: str) -> None:
        self.name = name

    def answer(self) -> tuple[str, str | None]:
        group = ray.util.get_current_placement_group()
        return self.name, group.id.hex() if group else None


class Deaf:
    """A sampler that does not answer."""

    def start_weight_update(self) -> None:
        threading.Event().wait(30)


class Sampler:
    """A rollout worker that says which prompt, seed and version each answer came from."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def generate(
        self,
        prompts: Sequence[Prompt],
        token_ids: Sequence[list[int]],
        seeds: Sequence[int],
        sampling: SamplingSettings,
        version: int,
        sample_indices: Sequence[int],
    ) -> list[Rollout]:
        time.sleep(self._seconds)
        return [
            Rollout(
                prompt=prompt,
                sample_index=index,
                policy_version=version,
                token_ids=np.array([*ids, seed]),
                response_start=len(ids),
                sampler_logprobs=np.zeros(1, np.float32),
                finish_reason="stop",
            )
            for prompt, ids, seed, index in zip(
                prompts, token_ids, seeds, sample_indices, strict=True
            )
        ]


def learn(seconds: float) -> None:
    """What the learner does meanwhile."""
    time.sleep(seconds)
