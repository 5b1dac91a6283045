"""What a process keeps in memory, in bytes per GPU (or per process, where there is none).

P: parameters, T: those that are trained, N: ranks, t: padded tokens of a microbatch.

weights      2 P in bfloat16, 4 P in float32; over N with ZeRO-3
gradients    bfloat16: 2 T, and 4 T for the float32 sums over microbatches
             (`rayward.actors.learning.zero`); float32: 4 T; over N from ZeRO-2 on
optimizer    AdamW, bfloat16: 12 T (float32 weights and two moments); float32: 8 T, and 4 T for
             ZeRO's own copy; over N from ZeRO-1 on
             In bfloat16 that is the 16 bytes per parameter of Rajbhandari et al. 2020 (ZeRO,
             arXiv 1910.02054, section 3.1), and the 4 of the sums.
activations  what a layer keeps for its backward pass, counted as in Korthikanti et al. 2022 (arXiv
             2205.05198, section 4.1: 34 s b h bytes for GPT's layer without its attention
             matrix), here for Llama's: inputs of both norms, of attention and of the feed-forward
             layer (4 h), queries and attention's output (2 q), keys and values (2 k), and the gated
             feed-forward layer's four inner tensors (4 i). Attention is fused and keeps no matrix.
             (4 h + 2 q + 2 k + 4 i) t elements per layer; with gradient checkpointing (ibid.,
             section 5) h t per layer, and one layer's all. Forward passes keep one layer's.
logits       vocabulary, for each token that is learned or scored: in the weights' dtype, in
             float32 (4) and as logprobs (4); in training their gradient too (4)
KV cache     2 layers k bytes of the dtype per token: keys and values; over the GPUs of an engine
gathered     ZeRO-3: whole weights of the layers at work, of at most 1e9 parameters
             (stage3_max_live_parameters), and of 5e7 that are fetched ahead
             (stage3_prefetch_bucket_size)
buckets      ZeRO: gradients on their way, of at most 5e8 parameters (reduce_bucket_size), in the
             weights' dtype; in bfloat16 a float32 copy besides, which is added up
stepping     AdamW's square roots, 4 T over N; with ZeRO float32 gradients too, 4 T over N. ZeRO-3
             goes by groups of at most 1e9 (sub_group_size). Activations are gone by then
context      2 GiB of each GPU for what no tensor is: CUDA's context and kernels, and the buffers of
             cuBLAS and NCCL. An estimate: it depends on driver, GPU and group sizes
loading      the whole weights, which a rank has on its GPU before ZeRO-3 splits them

The limits are DeepSpeed's defaults, which `rayward.actors.learning.zero` leaves as they are.
"""

from dataclasses import dataclass

from rayward.cluster.config.roles import DeepSpeedSettings, LoRASettings, Precision
from rayward.k8s.shapes import Shape

BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
CONTEXT = 2.0 * 2**30
"""Of each GPU, in bytes."""
_LIVE = 1e9 + 5e7
_BUCKET = 5e8
_SUB_GROUP = 1e9


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU, or of one process without."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    kv_cache: float = 0.0
    logits: float = 0.0
    gathered: float = 0.0
    buckets: float = 0.0
    stepping: float = 0.0
    """Needed when activations are gone."""
    context: float = 0.0
    loading: float = 0.0
    """Needed for a moment, before the others are."""

    @property
    def total(self) -> float:
        """The most that is needed at a time."""
        kept = self.weights + self.gradients + self.optimizer + self.buckets
        passing = self.activations + self.kv_cache + self.logits + self.gathered
        return self.context + max(self.loading, kept + max(passing, self.stepping))


def trained(
    shape: Shape,
    parameters: int,
    precision: Precision,
    deepspeed: DeepSpeedSettings,
    tokens: int,
    logit_tokens: int,
    checkpointing: bool,
    trainable: int | None = None,
) -> Memory:
    """A rank that DeepSpeed trains.

    Args:
        parameters: of the model as it is used.
        tokens: padded tokens of a microbatch.
        logit_tokens: those that have logits.
        checkpointing: whether activations are computed twice.
        trainable: parameters that are trained, where not all are.
    """
    width, ranks = BYTES[precision], deepspeed.ranks
    learned = parameters if trainable is None else trainable
    bfloat16 = precision == "bfloat16"
    stage = max(deepspeed.zero_stage, 1) if bfloat16 else deepspeed.zero_stage

    def split(since: int, whole: float) -> float:
        return whole / ranks if stage >= since else whole

    layer = layer_elements(shape)
    kept = shape.layers * shape.hidden + layer if checkpointing else shape.layers * layer
    # Each number that the optimizer changes takes so many bytes while it does: of ZeRO's own
    # gradients in float32, and of square roots.
    changed = 8 if stage else 4
    at_once = split(1, learned) if stage < 3 else min(split(1, learned), _SUB_GROUP)
    return Memory(
        weights=split(3, width * parameters),
        gradients=split(2, (6 if bfloat16 else 4) * learned),
        optimizer=split(1, (12 if bfloat16 or stage else 8) * learned),
        activations=width * kept * tokens,
        logits=logit_tokens * shape.vocabulary * (width + 12),
        gathered=width * min(parameters, _LIVE) if stage == 3 else 0.0,
        buckets=min(learned, _BUCKET) * (width + 4 if bfloat16 else width) if stage else 0.0,
        stepping=changed * at_once,
        # A learner that loads its own part alone (zero.Init) would need split(3, ...) here.
        loading=width * parameters,
    )


def scoring(
    shape: Shape, parameters: int, precision: Precision, tokens: int, logit_tokens: int
) -> Memory:
    """A frozen model that runs forward passes; arguments as for `trained`."""
    width = BYTES[precision]
    return Memory(
        weights=width * parameters,
        activations=width * layer_elements(shape) * tokens,
        logits=logit_tokens * shape.vocabulary * (width + 8),
    )


def layer_elements(shape: Shape) -> int:
    """What a layer keeps of each token for its backward pass, in elements."""
    outer = 4 * shape.hidden + 2 * shape.query_width + 2 * shape.kv_width
    return outer + 4 * shape.intermediate


def kv_bytes(shape: Shape, precision: Precision) -> int:
    """Keys and values of one token in all layers, in bytes."""
    return 2 * shape.layers * shape.kv_width * BYTES[precision]


def lora_parameters(shape: Shape, lora: LoRASettings) -> int:
    """Parameters of adapters at all linear layers: rank times each one's inputs and outputs.

    Adapters at chosen modules alone are fewer; those of Llama's names are counted one by one.
    """
    h, q, k, i = shape.hidden, shape.query_width, shape.kv_width, shape.intermediate
    sides = {
        "q_proj": h + q,
        "k_proj": h + k,
        "v_proj": h + k,
        "o_proj": q + h,
        "gate_proj": h + i,
        "up_proj": h + i,
        "down_proj": i + h,
    }
    chosen = sides if isinstance(lora.target_modules, str) else lora.target_modules
    return lora.rank * shape.layers * sum(sides.get(name, h + i) for name in chosen)
