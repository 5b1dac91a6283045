"""Dealing a batch to the processes of a role, by index, and putting their answers together."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ray import ObjectRef
from ray.actor import ActorHandle

from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.types import Float32Array, Prompt

Deal = Callable[
    [Sequence[Prompt], Sequence[list[int]], Sequence[int], SamplingSettings, int], list[ObjectRef]
]


def deal(workers: Sequence[ActorHandle]) -> Deal:
    """Cut a batch into one shard per rollout worker, by index, so that a run repeats.

    Returns:
        A function of prompts [N], their token ids [N], one seed each [N], the sampling settings
        and the weight version, which starts sampling one answer per prompt and returns one
        reference to a list of rollouts per worker; together in prompt order.
    """

    def sample(
        prompts: Sequence[Prompt],
        token_ids: Sequence[list[int]],
        seeds: Sequence[int],
        sampling: SamplingSettings,
        version: int,
    ) -> list[ObjectRef]:
        bounds = np.linspace(0, len(prompts), len(workers) + 1).astype(int)
        return [
            worker.generate.remote(
                prompts[start:end], token_ids[start:end], seeds[start:end], sampling, version
            )
            for worker, start, end in zip(workers, bounds[:-1], bounds[1:], strict=True)
        ]

    return sample


def share(replicas: list[ActorHandle], method: str, shards: Sequence[ObjectRef]) -> list[ObjectRef]:
    """Deal shards to replicas by index, so that a run repeats.

    Where there are more replicas than shards, several replicas take a part of each.
    """
    parts = max(1, len(replicas) // len(shards))
    return [
        getattr(replicas[(index * parts + part) % len(replicas)], method).remote(shard, part, parts)
        for index, shard in enumerate(shards)
        for part in range(parts)
    ]


def joined(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Shards put together again, in order."""
    return [item for part in parts for item in part]


def in_order(parts: Sequence[dict[int, Float32Array]]) -> list[Float32Array]:
    """Put the ranks' shares of a batch back in the batch's order."""
    merged: dict[int, Float32Array] = {}
    for part in parts:
        merged |= part
    return [merged[index] for index in range(len(merged))]
