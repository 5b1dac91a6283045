"""What a recipe takes with models of a given shape: memory by role, GPUs, nodes, the bottleneck.

All models of the recipe have the one shape: the policy and the reference with their head, the
critic and the reward models with a scalar one. `rayward.k8s.memory` and `rayward.k8s.step_time`
have the formulas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from math import ceil
from pathlib import Path
from typing import cast

from rayward.cluster.config.load import make_recipe
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.roles import Resources, ScoringRole, TrainedRole
from rayward.cluster.config.supervised import (
    RewardTrainingSettings,
    SFTSettings,
    SupervisedSettings,
)
from rayward.k8s.machines import uniform_machines
from rayward.k8s.memory import BYTES, CONTEXT, Memory, kv_bytes, lora_parameters, scoring, trained
from rayward.k8s.packing import plan_nodes
from rayward.k8s.shapes import Shape
from rayward.k8s.step_time import ETHERNET_GBIT, GPUS_PER_NODE, StepTime, step_time
from rayward.pipelines.run.capacity import moments
from rayward.pipelines.stage import stages_of

GIB = 2**30
GPU_MEMORY_GIB = {"gpu": 80.0, "gpu-large": 167.0}
"""Memory of the GPUs that each overlay is for: 80 GB of an A100 or H100, 180 GB of a B200."""
_LARGE = 20_000_000_000
_CPUS_PER_NODE = 128


@dataclass(frozen=True)
class RoleSize:
    """One role, or several stages that take the same."""

    role: str
    group: str
    """Where it goes: its labels' values, or cpu."""
    processes: int
    gpus: float
    """Of each process."""
    memory: Memory
    """Of each GPU; of each process, where there is no GPU."""
    fits: bool | None
    """Whether a GPU holds it; None without."""
    sequences: int | None = None
    """Answers that an engine draws at a time."""

    @property
    def share(self) -> float:
        """The part of a GPU that a process has."""
        return min(self.gpus, 1.0)


@dataclass(frozen=True)
class Size:
    """What a recipe takes with models of one shape."""

    shape: Shape
    roles: Sequence[RoleSize]
    nodes: Mapping[str, int]
    """Nodes of 8 GPUs by group, for the recipe's widest moments."""
    gpu_memory: float
    """Of a GPU, in bytes."""
    step: StepTime | None
    """A PPO step; None on CPUs, of which nothing is estimated, and where something does not fit."""

    @property
    def gpus(self) -> float:
        """GPUs of all roles of PPO."""
        return sum(one.processes * one.gpus for one in self.roles if one.role in _PPO_ROLES)

    @property
    def least_gpu_memory(self) -> float:
        """The memory that a GPU must have to hold the largest role, in bytes."""
        return max((one.memory.total / one.share for one in self.roles if one.gpus), default=0.0)


_PPO_ROLES = ("policy", "critic", "reference", "safety", "helpfulness", "rollout")


def default_recipe(
    shape: Shape, overrides: list[str] | None = None, overlays: list[Path] | None = None
) -> Recipe:
    """The defaults, with the topology of the gpu overlay, or of gpu-large for large models."""
    topology = cast(Path, files("rayward.k8s") / "overlays" / _overlay(shape) / "topology.yaml")
    document = {"name": "sizing", "data": {"tiny_world": {}}, "model": {"make": {}}}
    return make_recipe(document, overrides, [topology, *(overlays or [])])


def default_gpu_memory_gib(shape: Shape) -> float:
    """The memory of the GPUs that the default recipe's topology is for."""
    return GPU_MEMORY_GIB[_overlay(shape)]


def _overlay(shape: Shape) -> str:
    return "gpu-large" if shape.parameters > _LARGE else "gpu"


def size(
    recipe: Recipe, shape: Shape, gpu_memory_gib: float, network_gbit: float = ETHERNET_GBIT
) -> Size:
    """Size a recipe.

    Args:
        gpu_memory_gib: of a GPU.
        network_gbit: of a node to the others, in Gbit/s.

    Raises:
        InputError: a role fits on no node of 8 GPUs.
    """
    gpu_memory = gpu_memory_gib * GIB
    roles = _fits(recipe, shape)
    if any(isinstance(stage.settings(recipe), PPOSettings) for stage in stages_of(recipe)):
        roles += _ppo_roles(recipe.ppo, shape, gpu_memory)
    roles = [
        replace(one, fits=one.memory.total <= one.share * gpu_memory)
        if one.gpus and one.fits is None
        else one
        for one in roles
    ]
    asked = moments(recipe)
    selectors = [
        (f"{moment.name}: {one.name}", one.resources.labels)
        for moment in asked
        for one in moment.requests
    ]
    has_gpus = any(one.resources.gpus for moment in asked for one in moment.requests)
    machines = uniform_machines(selectors, _CPUS_PER_NODE, 1, GPUS_PER_NODE if has_gpus else 0)
    step = None
    ppo = {one.role: one for one in roles if one.role in _PPO_ROLES}
    if ppo and all(one.fits for one in ppo.values()):
        sequences = ppo["rollout"].sequences or 1
        microbatch = _microbatch(recipe.ppo, recipe.ppo.policy)
        step = step_time(recipe.ppo, shape, sequences, microbatch, network_gbit)
    return Size(shape, _together(roles), plan_nodes(asked, machines), gpu_memory, step)


def _fits(recipe: Recipe, shape: Shape) -> list[RoleSize]:
    return [
        _fit(stage.name, settings, shape)
        for stage in stages_of(recipe)
        for settings in stage.fits(recipe).values()
    ]


def _fit(name: str, settings: SupervisedSettings, shape: Shape) -> RoleSize:
    is_reward = isinstance(settings, RewardTrainingSettings)
    rows = ceil(settings.batch_size / settings.deepspeed.ranks) * (2 if is_reward else 1)
    tokens = _tokens(settings.max_tokens_per_microbatch, settings.max_tokens, rows)
    lora = settings.lora if isinstance(settings, SFTSettings) else None
    memory = trained(
        shape,
        shape.scalar_parameters if is_reward else shape.parameters,
        settings.precision,
        settings.deepspeed,
        tokens,
        0 if is_reward else tokens,
        settings.gradient_checkpointing,
        None if lora is None else lora_parameters(shape, lora),
    )
    return _role(name, settings.deepspeed.ranks, settings.resources, memory)


def _ppo_roles(ppo: PPOSettings, shape: Shape, gpu_memory: float) -> list[RoleSize]:
    found = [_learner("policy", ppo, ppo.policy, shape)]
    if ppo.has_critic:
        found.append(_learner("critic", ppo, ppo.critic, shape))
    found += [
        _scorer("reference", ppo, ppo.reference, ppo.reference.replicas, shape),
        _scorer("safety", ppo, ppo.safety, ppo.safety.replicas, shape),
        _scorer("helpfulness", ppo, ppo.helpfulness, ppo.helpfulness.replicas, shape),
    ]
    return [*found, _rollout(ppo, shape, gpu_memory)]


def _learner(name: str, ppo: PPOSettings, role: TrainedRole, shape: Shape) -> RoleSize:
    is_policy = name == "policy"
    lora = ppo.policy.lora if is_policy else None
    tokens = _microbatch(ppo, role)
    memory = trained(
        shape,
        shape.parameters if is_policy else shape.scalar_parameters,
        role.precision,
        role.deepspeed,
        tokens,
        _answer_tokens(ppo, tokens) if is_policy else 0,
        role.gradient_checkpointing,
        None if lora is None else lora_parameters(shape, lora),
    )
    return _role(name, role.deepspeed.ranks, role.resources, memory)


def _scorer(
    name: str, ppo: PPOSettings, role: ScoringRole, replicas: int, shape: Shape
) -> RoleSize:
    is_reference = name == "reference"
    rows = ceil(ppo.batch_size / replicas)
    tokens = _tokens(role.max_tokens_per_microbatch, _length(ppo), rows)
    memory = scoring(
        shape,
        shape.parameters if is_reference else shape.scalar_parameters,
        role.precision,
        tokens,
        _answer_tokens(ppo, tokens) if is_reference else 0,
    )
    return _role(name, replicas, role.resources, memory)


def _rollout(ppo: PPOSettings, shape: Shape, gpu_memory: float) -> RoleSize:
    """An engine takes what it may of its GPUs; the more is left for the cache, the more at once."""
    role, split = ppo.rollout, ppo.rollout.tensor_parallel_size
    weights = BYTES[role.precision] * shape.parameters / split
    # A GPU holds whole heads: where there are fewer of them than GPUs, they are there twice.
    share = max(1 / split, 1 / shape.kv_heads)
    each = kv_bytes(shape, role.precision) * share * _length(ppo)
    room = role.gpu_memory_utilization * gpu_memory - weights - CONTEXT
    if not role.resources.gpus:
        room = role.kv_cache_gib * GIB
    wanted = min(role.max_num_seqs, ceil(ppo.batch_size / role.replicas))
    sequences = max(0, min(wanted, int(room / each)))
    memory = Memory(
        weights, kv_cache=max(sequences, 1) * each, logits=4.0 * wanted * shape.vocabulary
    )
    fits = sequences > 0 if role.resources.gpus else None
    found = _role("rollout", role.replicas, role.resources, memory)
    return replace(found, fits=fits, sequences=sequences)


def _role(name: str, processes: int, resources: Resources, memory: Memory) -> RoleSize:
    group = "-".join(resources.labels.values()) or "cpu"
    if resources.gpus:
        memory = replace(memory, context=CONTEXT)
    return RoleSize(name, group, processes, resources.gpus, memory, None)


def _together(roles: Sequence[RoleSize]) -> list[RoleSize]:
    """Stages that take the same are one row."""
    found: dict[RoleSize, list[str]] = {}
    for one in roles:
        found.setdefault(replace(one, role=""), []).append(one.role)
    return [
        replace(one, role=name)
        for one, names in found.items()
        for name in (names if set(names) & set(_PPO_ROLES) else [", ".join(names)])
    ]


def _length(ppo: PPOSettings) -> int:
    return ppo.sampling.max_prompt_tokens + ppo.sampling.max_response_tokens


def _microbatch(ppo: PPOSettings, role: TrainedRole) -> int:
    rows = ceil(ppo.minibatch_size / role.deepspeed.ranks)
    return _tokens(role.max_tokens_per_microbatch, _length(ppo), rows)


def _tokens(budget: int, length: int, rows: int) -> int:
    """Padded tokens of the largest microbatch: whole rows within the budget, but one at least."""
    return length * min(rows, max(1, budget // length))


def _answer_tokens(ppo: PPOSettings, tokens: int) -> int:
    return tokens // _length(ppo) * (ppo.sampling.max_response_tokens + 1)
