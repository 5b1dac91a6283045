"""DeepSpeed: joining a process group, wrapping a model, gathering its weights."""

import os

import deepspeed
import torch

from cluster.config.roles import DeepSpeedSettings, OptimizerSettings, Precision


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


def make_engine(
    model: torch.nn.Module,
    optimizer: OptimizerSettings,
    settings: DeepSpeedSettings,
    precision: Precision,
) -> deepspeed.DeepSpeedEngine:
    """Wrap a model and AdamW in a DeepSpeed engine.

    The caller accumulates: it divides each microbatch's loss by the global token count, multiplies
    by the world size (DeepSpeed averages over ranks), calls `engine.backward(loss,
    scale_wrt_gas=False)` as often as it likes, and `engine.step()` once.
    """
    # Weight decay is for matrices; gains and biases keep their scale.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    spared = [p for p in model.parameters() if p.ndim <= 1]
    adamw = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": optimizer.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ],
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
    )
    # In float32 without ZeRO, DeepSpeed clips but does not tell the norm: clip in its stead.
    plain = settings.zero_stage == 0 and precision == "float32"
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adamw,
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": 0.0 if plain else optimizer.gradient_clip,
            "zero_optimization": {"stage": settings.zero_stage},
            # AdamW from torch on any device: DeepSpeed's own CPU Adam would have to be compiled.
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": precision == "bfloat16"},
        },
    )
    if plain:

        def clip(*_: object) -> None:
            engine.plain_gradient_norm = torch.nn.utils.clip_grad_norm_(
                model.parameters(), optimizer.gradient_clip
            )

        adamw.register_step_pre_hook(clip)
    return engine


def gradient_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """The global gradient norm of the last step, before it was clipped."""
    norm = engine.get_global_grad_norm()
    return float(engine.plain_gradient_norm if norm is None else norm)


def full_weights(model: torch.nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """Copies of all weights on the CPU, gathered where ZeRO-3 has split them.

    Every rank must call this; ranks with `keep` false join the gathering and get an empty dict.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        split = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(split):
            if keep:
                weights[name] = parameter.detach().cpu().clone()
    return weights
