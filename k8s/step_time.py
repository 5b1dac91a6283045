"""Where the time of a PPO step goes, roughly: which of its phases is likely the longest.

B: answers of a step, p and r: tokens of a prompt and of an answer, P: parameters, w: bytes of a
weight, n: GPUs of the role.

generation  a token of every running answer takes one pass over the weights and the KV cache, so
            that memory bandwidth limits it: r (w P + KV cache) / (n bandwidth) for each wave of
            answers; the prompts take 2 P p B / (n compute)
scoring     2 P (p + r) B / (n compute): one forward pass; the roles score side by side
learning    6 P (p + r) B / (n compute), 8 P with gradient checkpointing (Kaplan et al. 2020,
            arXiv 2001.08361, section 2.1); or ZeRO-3's traffic where that takes longer:
            3 w P (n-1)/n for each microbatch (ZeRO, section 7.2.2), over NVLink within a node; over
            several, NCCL's ring passes all of it once through each node's network; policy and
            critic learn side by side
sync        w P / network, once

The numbers are those of NVIDIA's A100 with 80 GB (data sheet: 312e12 operations/s in bfloat16 and
19.5e12 in float32, 2.0e12 bytes/s of memory, 600e9 of NVLink in both directions), in nodes of 8.
The network between nodes is given: what pods have without more is TCP by the node's Ethernet, of
which 100 Gbit/s are common; with RDMA, which pods must be given, a node of 8 has up to 1600.
40 % of the compute and 60 % of memory's and the network's bandwidth are taken as reached; the
object store's 1e9 bytes/s is a guess. Newer GPUs are faster in all of these; the shares move less
than the seconds, which are no promise.
"""

from dataclasses import dataclass
from math import ceil

from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.config.roles import Precision, TrainedRole
from rayward.k8s.memory import BYTES, kv_bytes
from rayward.k8s.shapes import Shape

_COMPUTE: dict[Precision, float] = {"bfloat16": 0.4 * 312e12, "float32": 0.4 * 19.5e12}
_MEMORY = 0.6 * 2.0e12
_NVLINK = 300e9
_REACHED = 0.6  # of the network
_OBJECT_STORE = 1e9  # copies on the CPU, one after another
GPUS_PER_NODE = 8
ETHERNET_GBIT = 100.0
"""A node's network without RDMA, in Gbit/s."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step's phases."""

    generation: float
    scoring: float
    learning: float
    sync: float
    generation_is_prompts: bool
    """Whether reading the prompts takes longer than writing the answers."""
    learning_is_traffic: bool
    """Whether ZeRO-3's traffic takes longer than the arithmetic."""

    @property
    def shares(self) -> dict[str, float]:
        """Each phase's part of the step."""
        phases = {
            "generation": self.generation,
            "scoring": self.scoring,
            "learning": self.learning,
            "sync": self.sync,
        }
        return {name: seconds / sum(phases.values()) for name, seconds in phases.items()}

    @property
    def bottleneck(self) -> str:
        """The longest phase, and what limits it."""
        limits = {
            "generation": "compute of the rollout GPUs, for the prompts"
            if self.generation_is_prompts
            else "memory bandwidth of the rollout GPUs",
            "scoring": "compute of the scoring GPUs",
            "learning": "ZeRO-3's traffic" if self.learning_is_traffic else "compute of learners",
            "sync": "the link between learner and rollout",
        }
        phase = max(self.shares, key=self.shares.__getitem__)
        return f"{phase} ({limits[phase]})"


def step_time(
    settings: PPOSettings, shape: Shape, sequences: int, microbatch: int, network_gbit: float
) -> StepTime:
    """The seconds of one step on GPUs.

    Args:
        sequences: answers that one engine draws at a time.
        microbatch: tokens of a learner's microbatch.
        network_gbit: of a node to the others, in Gbit/s.
    """
    network = _REACHED * network_gbit * 1e9 / 8
    prompt = settings.sampling.max_prompt_tokens
    answer = settings.sampling.max_response_tokens
    tokens = settings.batch_size * (prompt + answer)
    learners = [settings.policy, settings.critic] if settings.has_critic else [settings.policy]
    scorers = [settings.reference, settings.safety, settings.helpfulness]
    forward = [(one.deepspeed.ranks, one.precision) for one in learners]
    forward += [(one.replicas, one.precision) for one in scorers]
    learned = [_learning(one, settings, shape, tokens, microbatch, network) for one in learners]
    seconds, is_traffic = max(learned)
    sync = settings.rollout.weight_sync.backend
    prompts, answers = _generation(settings, shape, sequences, prompt, answer)
    return StepTime(
        generation=prompts + answers,
        scoring=max(2 * shape.parameters * tokens / (n * _COMPUTE[kind]) for n, kind in forward),
        learning=seconds,
        sync=BYTES[settings.rollout.precision]
        * shape.parameters
        / (_OBJECT_STORE if sync == "object_store" else network),
        generation_is_prompts=prompts > answers,
        learning_is_traffic=is_traffic,
    )


def _generation(
    settings: PPOSettings, shape: Shape, sequences: int, prompt: int, answer: int
) -> tuple[float, float]:
    """Seconds for prompts and for answers."""
    role = settings.rollout
    own = ceil(settings.batch_size / role.replicas)
    at_once = min(own, max(sequences, 1))
    cache = at_once * (prompt + answer / 2) * kv_bytes(shape, role.precision)
    read = BYTES[role.precision] * shape.parameters + cache
    decode = ceil(own / at_once) * answer * read / (role.tensor_parallel_size * _MEMORY)
    compute = role.tensor_parallel_size * _COMPUTE[role.precision]
    return 2 * shape.parameters * own * prompt / compute, decode


def _learning(
    role: TrainedRole,
    settings: PPOSettings,
    shape: Shape,
    tokens: int,
    microbatch: int,
    network: float,
) -> tuple[float, bool]:
    ranks = role.deepspeed.ranks
    passes = 8 if role.gradient_checkpointing else 6
    compute = passes * shape.parameters * tokens / (ranks * _COMPUTE[role.precision])
    if role.deepspeed.zero_stage < 3 or ranks == 1:
        return compute, False
    steps = settings.batch_size // settings.minibatch_size
    microbatches = steps * ceil(tokens / steps / ranks / microbatch)
    moved = 3 * BYTES[role.precision] * shape.parameters * (ranks - 1) / ranks * microbatches
    traffic = moved / (_NVLINK if ranks <= GPUS_PER_NODE else network)
    return max(compute, traffic), traffic > compute
