"""DeepSpeed: joining a process group, wrapping a model, gathering its weights."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import deepspeed
import torch
from transformers import PreTrainedModel

from rayward.actors.learning.lora import WholeWeight, whole_weights
from rayward.cluster.config.roles import DeepSpeedSettings, OptimizerSettings, Precision
from rayward.cluster.errors import InputError


def join_process_group(rank: int, world_size: int, address: str, port: int) -> None:
    """Join torch.distributed through DeepSpeed: nccl where there is a GPU, else gloo."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK="0",
        WORLD_SIZE=str(world_size),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def recompute_activations(model: PreTrainedModel, field: str) -> None:
    """Compute each layer's activations anew in the backward pass instead of keeping them.

    Args:
        field: where the recipe asks for it.

    Raises:
        InputError: names `field`; the model cannot do it.
    """
    if not model.supports_gradient_checkpointing:
        expected = f"false, because {type(model).__name__} cannot recompute its activations"
        raise InputError(field, True, expected)
    # Not the reentrant kind: that one loses the gradient where a layer's input needs none.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers recomputes in training mode alone. It draws nothing here: dropout is 0.
    model.train()


def make_engine(
    model: torch.nn.Module,
    optimizer: OptimizerSettings,
    settings: DeepSpeedSettings,
    precision: Precision,
) -> deepspeed.DeepSpeedEngine:
    """Wrap a model and AdamW, for the weights that are trained, in a DeepSpeed engine.

    The caller accumulates: it divides each microbatch's loss by the global token count, multiplies
    by the world size (DeepSpeed averages over ranks), calls `engine.backward(loss,
    scale_wrt_gas=False)` as often as it likes, and `engine.step()` once.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    # Weight decay is for matrices; gains and biases keep their scale.
    decayed = [p for p in trained if p.ndim > 1]
    spared = [p for p in trained if p.ndim <= 1]
    adamw = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": optimizer.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ],
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
    )
    bfloat16 = precision == "bfloat16"
    # In bfloat16 without ZeRO, DeepSpeed's optimizer takes a step of Adam over zero gradients when
    # it is made: all weights decay, and the first real step is 0.73 of its length. Stage 1 on the
    # same ranks gives the numbers that stage 0 should give.
    stage = max(settings.zero_stage, 1) if bfloat16 else settings.zero_stage
    # In float32 without ZeRO, DeepSpeed clips but does not tell the norm: clip in its stead.
    plain = stage == 0
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adamw,
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": 0.0 if plain else optimizer.gradient_clip,
            "zero_optimization": {"stage": stage},
            # AdamW from torch on any device: DeepSpeed's own CPU Adam would have to be compiled.
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": bfloat16},
            # Microbatches add up in float32: in bfloat16 the hundredth no longer counts in full.
            "data_types": {"grad_accum_dtype": "fp32"},
        },
    )
    if plain:

        def clip(*_: object) -> None:
            engine.plain_gradient_norm = torch.nn.utils.clip_grad_norm_(
                trained, optimizer.gradient_clip
            )

        adamw.register_step_pre_hook(clip)
    return engine


def gradient_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """The global gradient norm of the last step, before it was clipped."""
    norm = engine.get_global_grad_norm()
    return float(engine.plain_gradient_norm if norm is None else norm)


@contextmanager
def gathered(weight: WholeWeight) -> Iterator[torch.Tensor]:
    """The whole weight, for as long as the context lasts; every rank must enter it."""
    split = [part for part in weight.parts if hasattr(part, "ds_id")]
    with deepspeed.zero.GatheredParameters(split):
        yield weight.value()


def full_weights(model: torch.nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """The model's whole state, with adapters merged in: copies on the CPU, gathered.

    Every rank must call this; ranks with `keep` false join the gathering and get an empty dict.
    """
    weights = copies(whole_weights(model), keep)
    if keep:
        stored = model.state_dict().keys()
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
        weights |= {name: buffer.cpu().clone() for name, buffer in buffers.items()}
    return weights


def copies(weights: Iterable[WholeWeight], keep: bool) -> dict[str, torch.Tensor]:
    """Copies of weights on the CPU, gathered where ZeRO-3 has split them; called on every rank."""
    copied: dict[str, torch.Tensor] = {}
    for weight in weights:
        with gathered(weight) as value:
            if keep:
                copied[weight.name] = value.cpu().clone()
    return copied
