"""The learner's side of weight sync, through vLLM's native weight-transfer API.

On GPUs vLLM's own `nccl` and `ipc` trainers do the work. Anywhere, CPUs included, the
`object_store` trainer sends the weights in buckets through Ray's object store.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import ray
import torch
from ray.actor import ActorHandle
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferInitRequest,
    WeightTransferUpdatePayload,
    WeightTransferUpdateRequest,
)

from rayward.actors.learning.lora import whole_weights
from rayward.actors.learning.zero import gathered
from rayward.actors.sampling.weight_transfer import BACKEND, register
from rayward.cluster.config.roles import RolloutRole


class ModelSource(WeightSource):
    """The learner's whole weights, one by one: gathered, and with adapters merged in."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._weights = whole_weights(model)

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype and full shape of every weight."""
        return [ParamMeta(weight.name, weight.dtype, weight.shape) for weight in self._weights]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for weight in self._weights:
            with gathered(weight) as value:
                yield weight.name, value


class TimedSyncClient:
    """Drives the samplers' side of a sync over Ray, with a time-out on every call.

    Args:
        samplers: handles of the rollout workers.
        timeout_s: for each call, in seconds.
        processes: over how many processes each sampler splits its weights.

    Raises:
        ray.exceptions.GetTimeoutError: a sampler did not answer in time.
    """

    def __init__(self, samplers: list[ActorHandle], timeout_s: float, processes: int = 1) -> None:
        self._samplers = samplers
        self._timeout_s = timeout_s
        self._processes = processes
        self.version = 0

    def _all(self, method: str, *args: object) -> None:
        calls = [getattr(sampler, method).remote(*args) for sampler in self._samplers]
        ray.get(calls, timeout=self._timeout_s)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Open the transfer on every sampler."""
        calls: list[ray.ObjectRef] = []
        for index, sampler in enumerate(self._samplers):
            own = dict(init_info)
            if "rank_offset" in own:
                # Each engine is a world of its own to vLLM; NCCL wants ranks that differ.
                own["rank_offset"] += index * self._processes
            request = WeightTransferInitRequest(init_info=own)
            calls.append(sampler.init_weight_transfer_engine.remote(request))
        ray.get(calls, timeout=self._timeout_s)

    def start_weight_update(self) -> None:
        """Begin an update: from here to its end no sampler answers with a version."""
        self._all("start_weight_update")

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """Hand one bucket to every sampler."""
        self._all("update_weights", WeightTransferUpdateRequest(update_info=update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update and stamp every engine with the version that it now holds."""
        self._all("finish_weight_update", weight_version or str(self.version))


@dataclass
class ObjectStoreTrainerInfo(TrainerInitInfo):
    """How the learner sends."""

    backend: ClassVar[str] = BACKEND

    bucket_bytes: int


class ObjectStoreTrainer(TrainerWeightTransferEngine[ObjectStoreTrainerInfo]):
    """The learner's side: every rank gathers, rank 0 puts buckets and calls the samplers."""

    init_info_cls = ObjectStoreTrainerInfo

    def __init__(
        self,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource,
        is_sender: bool,
        bucket_bytes: int,
    ) -> None:
        super().__init__(client=client, source=source, is_sender=is_sender)
        self._weights = source
        self._bucket_bytes = bucket_bytes

    @classmethod
    def trainer_init(
        cls,
        init_info: ObjectStoreTrainerInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        """Open the transfer; called on every rank."""
        if source is None:
            raise ValueError("the object_store engine sends whole models and needs their source")
        if init_info.is_sender:
            client.init_weight_transfer_engine({})
        return cls(
            client=client,
            source=source,
            is_sender=init_info.is_sender,
            bucket_bytes=init_info.bucket_bytes,
        )

    def send_weights(self) -> None:
        """One whole update; called on every rank, because gathering is a collective."""
        if self.is_sender:
            self.client.start_weight_update()
        bucket: list[tuple[str, torch.Tensor]] = []
        size = 0
        for name, tensor in self._weights:
            if not self.is_sender:
                continue
            # A copy: the gathered weight is released when the iterator moves on.
            bucket.append((name, tensor.detach().cpu().clone()))
            size += tensor.numel() * tensor.element_size()
            if size >= self._bucket_bytes:
                self._send(bucket)
                bucket, size = [], 0
        if self.is_sender:
            if bucket:
                self._send(bucket)
            self.client.finish_weight_update()

    def _send(self, bucket: list[tuple[str, torch.Tensor]]) -> None:
        self.client.update_weights({"bucket": [ray.put(bucket)]})


def open_sync(
    settings: RolloutRole,
    samplers: list[ActorHandle],
    model: torch.nn.Module,
    rank: int,
) -> tuple[TimedSyncClient, TrainerWeightTransferEngine]:
    """Open the way from the learner's model to the samplers; called on every learner rank."""
    register()
    sync, processes = settings.weight_sync, settings.tensor_parallel_size
    client = TimedSyncClient(samplers, sync.timeout_s, processes)
    info: TrainerInitInfo
    if sync.backend == "object_store":
        info = ObjectStoreTrainerInfo(bucket_bytes=sync.bucket_bytes, rank=rank)
    elif sync.backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        info = NCCLTrainerInitInfo(
            master_address=ray.util.get_node_ip_address(),
            master_port=port,
            # The sender, and every process of every sampler.
            world_size=1 + len(samplers) * processes,
            packed_buffer_size_bytes=sync.bucket_bytes,
            rank=rank,
        )
    else:
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        info = IPCTrainerInitInfo(rank=rank)
    trainer = WeightTransferTrainerFactory.trainer_init(
        info, client=client, source=ModelSource(model)
    )
    return client, trainer
