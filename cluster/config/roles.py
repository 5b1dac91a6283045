"""Where each role runs and which model it starts from."""

from typing import Annotated, Literal

from pydantic import Field

from rayward.cluster.config.base import Settings

Precision = Literal["float32", "bfloat16"]


class Resources(Settings):
    """What one process of a role asks of Ray."""

    cpus: float = Field(default=1.0, ge=0)
    """CPU cores per process, as Ray counts them (fractions are allowed)."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs per process, as Ray counts them (fractions share a GPU)."""
    custom: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Custom Ray resources per process, by name."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray label selector: the role runs only on nodes that carry these labels."""
    threads: int = Field(default=1, ge=1)
    """Intra-op threads per process. Concurrent roles want 1; a lone one may take more."""


class ModelRole(Settings):
    """A role that holds a transformers model."""

    path: str | None = None
    """A transformers directory or hub id. Null: what this run's earlier stages made."""
    precision: Precision = "float32"
    """The dtype of the weights in this role."""
    resources: Resources = Resources()
    """What each process of this role asks of Ray."""


class ScoringRole(ModelRole):
    """A role that only runs forward passes."""

    max_tokens_per_microbatch: int = Field(default=16384, ge=1)
    """Padded tokens in one forward pass, at most."""


class RewardRole(ScoringRole):
    """A role that judges whole conversations: one output, higher is better."""

    chat_template: str | None = None
    """A Jinja file in place of the tokenizer's own chat template, for a model that has none."""


class ReplicatedRole(ScoringRole):
    """A scoring role whose replicas share the work."""

    replicas: int = Field(default=1, ge=1)
    """How many processes share this role's work."""


class ReplicatedRewardRole(RewardRole, ReplicatedRole):
    """A reward model in PPO."""


class LoRASettings(Settings):
    """Low-rank adapters (Hu et al. 2021), through PEFT: the base weights stay as they are."""

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """Adapters are scaled by alpha / rank."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get one; "all-linear" means every linear layer but the head."""


class PolicyLoRASettings(LoRASettings):
    """The policy's adapters during PPO. Its starting point without them is the reference."""

    save_as: Literal["merged", "adapter"] = "merged"
    """What the stage leaves: a whole model, or an adapter for the starting point."""


class OptimizerSettings(Settings):
    """AdamW."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(default=1e-5, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest global gradient norm; longer gradients are scaled down to it."""


class DeepSpeedSettings(Settings):
    """How DeepSpeed holds and steps a trained model."""

    ranks: int = Field(default=1, ge=1)
    """Data-parallel processes."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage: what is partitioned over the ranks (1 optimizer, 2 + gradients, 3 + weights).
    In bfloat16, 0 runs as 1: DeepSpeed has no sound optimizer for it, and the numbers are the same.
    """


class TrainedRole(ModelRole):
    """A role that DeepSpeed trains during PPO."""

    deepspeed: DeepSpeedSettings = DeepSpeedSettings()
    """Ranks and ZeRO stage."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """AdamW's settings (Llama 2, section 3.4.3)."""
    max_tokens_per_microbatch: int = Field(default=8192, ge=1)
    """Padded tokens in one forward or backward pass, at most."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, more time."""


class PolicyRole(TrainedRole):
    """The policy's learner."""

    lora: PolicyLoRASettings | None = None
    """Train low-rank adapters; null trains all weights."""


class WeightSyncSettings(Settings):
    """How new weights travel from the learner to the samplers."""

    backend: Literal["object_store", "nccl", "ipc"] = "object_store"
    """vLLM weight-transfer engine: Rayward's own over Ray's object store, or vLLM's on GPUs."""
    bucket_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Weights are sent in buckets of about this many bytes."""
    timeout_s: float = Field(default=300.0, gt=0)
    """A sync that takes longer than this many seconds is an error."""


class RolloutRole(Settings):
    """The vLLM workers that sample."""

    replicas: int = Field(default=1, ge=1)
    """How many vLLM engines share the sampling."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Processes (GPUs) that one engine splits its weights over; passed through to vLLM."""
    precision: Precision = "float32"
    """The dtype of the sampler's weights."""
    enforce_eager: bool = True
    """Run vLLM without compilation: it starts sooner and suits small models."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences that one engine runs at the same time, at most."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """Key-value cache of a CPU engine, in GiB."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that an engine may take, on GPUs."""
    resources: Resources = Resources()
    """What each engine asks of Ray."""
    weight_sync: WeightSyncSettings = WeightSyncSettings()
    """How new weights arrive."""
