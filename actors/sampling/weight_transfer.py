"""The sampler's side of weight sync: a vLLM weight-transfer engine over Ray's object store.

vLLM finds it through the `vllm.general_plugins` entry point in every process that it starts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer import (
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

BACKEND = "object_store"


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """The object store needs no rendezvous."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """One bucket, which the rollout worker has fetched: names and tensors."""

    bucket: list[tuple[str, torch.Tensor]]


class ObjectStoreEngine(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    """The sampler's side: loads buckets as a checkpoint's weights."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        """Nothing to open."""

    def start_weight_update(self) -> None:
        """Make the packed layers ready to take checkpoint weights."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket. The base class would ask for an accelerator to synchronise."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        """Load one bucket into the model."""
        load_weights: Any = self.model.load_weights
        load_weights((name, tensor.to(self.device)) for name, tensor in update_info.bucket)

    def finish_weight_update(self) -> None:
        """Pack the layers again."""
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            # A head that is tied to the embedding gets no weights of its own, so vLLM does not
            # pack it anew: on CPUs it would go on computing with the old weights.
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing to release."""


def register() -> None:
    """Make the `object_store` engine known to vLLM; vLLM calls it as a plugin, more than once."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, __name__, "ObjectStoreEngine")
        WeightTransferTrainerFactory.register_engine(
            BACKEND, "rayward.actors.learning.weight_sync", "ObjectStoreTrainer"
        )
