"""Who is which rank when weights go over NCCL, which needs GPUs to run."""

from typing import Any

import pytest
import ray
from torch import nn
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

from rayward.actors.learning.weight_sync import open_sync
from rayward.cluster.config.roles import RolloutRole


class Asked:
    """Stands for a method of a sampler's handle and keeps what it was called with."""

    def __init__(self) -> None:
        self.init_info: dict[str, Any] = {}

    def remote(self, request: Any) -> ray.ObjectRef:  # noqa: ANN401 (vLLM's own)
        self.init_info = request.init_info
        return ray.put(None)


class Sampler:
    """Stands for a sampler's handle."""

    def __init__(self) -> None:
        self.init_weight_transfer_engine = Asked()


@pytest.mark.parametrize(
    ("processes", "world_size", "offsets"), [(1, 4, [1, 2, 3]), (4, 13, [1, 5, 9])]
)
def test_every_process_of_a_sampler_has_a_rank_of_its_own(
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    world_size: int,
    offsets: list[int],
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(
        WeightTransferTrainerFactory, "trainer_init", lambda info, **_: opened.append(info)
    )
    samplers: list[Any] = [Sampler() for _ in range(3)]
    settings = RolloutRole.model_validate(
        {"tensor_parallel_size": processes, "weight_sync": {"backend": "nccl"}}
    )
    client, _ = open_sync(settings, samplers, nn.Linear(1, 1), rank=0)
    assert opened[0].world_size == world_size
    # As vLLM's trainer does it: its samplers begin at rank 1, behind the sender.
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": world_size})
    asked = [sampler.init_weight_transfer_engine.init_info for sampler in samplers]
    assert [own["rank_offset"] for own in asked] == offsets
    assert {own["world_size"] for own in asked} == {world_size}
