"""`rayward doctor`: the parts at work, each on its own, then together.

Each function runs in a process of its own, and imports the part that it is about and no other.
"""

import os
import socket
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayward.cluster.config.ppo import PPOSettings, SamplingSettings
from rayward.cluster.config.roles import (
    DeepSpeedSettings,
    OptimizerSettings,
    Precision,
    ReplicatedRewardRole,
    Resources,
    RolloutRole,
)
from rayward.cluster.config.tiny_world import LlamaShape
from rayward.cluster.runs.manifest import package_versions
from rayward.cluster.types import Message, Prompt
from rayward.pipelines.doctor.machine import GIB
from rayward.pipelines.doctor.process import CheckFailed, NotChecked, Place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHAPE = LlamaShape(
    vocab_size=300,
    hidden_size=64,
    heads=2,
    layers=2,
    intermediate_size=128,
    max_position_embeddings=64,
)
_PROMPT = Prompt(
    "doctor", (Message("user", "How are you?"),), None, None, False, False, "rayward doctor"
)
_SAMPLING = SamplingSettings(max_prompt_tokens=32, max_response_tokens=8)
_ANSWERS = 4
# Of logprobs: two implementations in the same precision, and bfloat16 against float32.
_TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.2}


def check_torch(place: Place) -> str:
    """Multiply matrices on the CPU and on every GPU that torch sees."""
    import torch

    def product(device: str) -> float:
        ones = torch.ones(256, 256, device=device)
        return float((ones @ ones).sum())

    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    for device in ("cpu", *devices):
        # 256 rows times 256 columns, of 256 each.
        if (found := product(device)) != 256**3:
            raise CheckFailed(f"a product of matrices on {device} is {found}, not {256**3}")
    if not devices:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        return f"computes; no GPU seen (torch is {build})"
    gpus = [torch.cuda.get_device_properties(device) for device in devices]
    return "computes; GPUs: " + ", ".join(
        f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in gpus
    )


def check_address(place: Place) -> str:
    """Ask whether anybody listens at the cluster's address."""
    from rayward.cluster.ray_runtime.session import check_address

    check_address(place.address)
    return "somebody listens"


def check_ray(place: Place) -> str:
    """Start or join Ray and run a task on every node."""
    from rayward.cluster.ray_runtime.session import ray_session

    with ray_session(place.address, 1):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task: Any = ray.remote(num_cpus=0)(_node_says)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        said = ray.get(
            [
                task.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ).remote()
                for node in nodes
            ]
        )
        resources = ray.cluster_resources()
    for node, versions in zip(nodes, said, strict=True):
        if versions != _node_says():
            raise CheckFailed(
                f"node {node['NodeManagerAddress']} has {versions}, this one has {_node_says()}",
                "install the same versions on every node of the cluster",
            )
    what = "joined" if place.address else "started"
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    return f"{what}; a task ran on {_count(len(nodes), 'node')}: {cpus:g} CPUs, {gpus:g} GPUs"


def _node_says() -> dict[str, str | None]:
    """The versions where this runs."""
    return {"rayward": metadata.version("rayward"), **package_versions()}


def check_deepspeed_op(place: Place) -> str:
    """Load the compiled op that DeepSpeed talks through on CPUs; where there is none, compile."""
    from deepspeed.accelerator import get_accelerator

    if (device := get_accelerator().device_name()) != "cpu":
        return f"not needed: DeepSpeed uses {device}"
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    level = ShareMemCommBuilder().load(verbose=False).vector_kernel_level()
    return f"loaded; vector level {level}"


def check_deepspeed(place: Place) -> str:
    """Take one optimizer step with a tiny model, as a learner does."""
    import torch

    from rayward.actors.learning.zero import gradient_norm, join_process_group, make_engine
    from rayward.pipelines.run.start_model import make_llama, make_tokenizer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join_process_group(0, 1, "127.0.0.1", port)
    model = make_llama(make_tokenizer([], _SHAPE.vocab_size), _SHAPE, seed=0)
    engine = make_engine(
        model, OptimizerSettings(learning_rate=1e-3), DeepSpeedSettings(), "float32"
    )
    ids = torch.arange(32, device=engine.device)[None]
    before = engine(input_ids=ids, labels=ids).loss
    engine.backward(before, scale_wrt_gas=False)
    engine.step()
    with torch.no_grad():
        after = engine(input_ids=ids, labels=ids).loss
    numbers = (float(before), float(after), gradient_norm(engine))
    if not (np.isfinite(numbers).all() and after < before):
        raise CheckFailed(
            "loss {:.4g} before and {:.4g} after a step, norm {:.4g}".format(*numbers)
        )
    return "one step; loss {:.3f}, then {:.3f}; gradient norm {:.3f}".format(*numbers)


def check_vllm(place: Place) -> str:
    """Sample a few tokens from a tiny model, and hold their logprobs against transformers'."""
    # torch reads this one as it is imported.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch

    from rayward.actors.models.forward import response_logprobs
    from rayward.actors.models.loading import load_causal_lm
    from rayward.actors.sampling.rollout_worker import RolloutWorker, rollout_environment

    settings = _rollout_role()
    os.environ.update(rollout_environment(settings))
    tokenizer, path = _make_tiny_llama(Path("vllm-model"), seed=0)
    eos = int(tokenizer.eos_token_id)
    room = _SHAPE.max_position_embeddings
    worker = RolloutWorker(path, settings, room, eos, seed=0, version=0)
    ids = tokenizer.encode(_PROMPT.messages[0].content)
    rollouts = worker.generate(
        [_PROMPT] * _ANSWERS, [ids] * _ANSWERS, list(range(_ANSWERS)), _SAMPLING, version=0
    )
    model = load_causal_lm(path, "float32")
    with torch.no_grad():
        own, _ = response_logprobs(model, rollouts, _SAMPLING.temperature, with_entropy=False)
    theirs = np.concatenate([rollout.sampler_logprobs for rollout in rollouts])
    worst = float(np.abs(own.numpy() - theirs).max())
    _require_agreement(worst, settings.precision, "vLLM", "transformers")
    return f"{len(theirs)} tokens sampled; logprobs as transformers', to {worst:.0e}"


def check_reward_model(place: Place) -> str:
    """Score two conversations with a tiny reward model; it refuses what is not finite itself."""
    from rayward.actors.models.loading import load_scalar_model, save_model
    from rayward.actors.scoring.reward_model import RewardModel

    tokenizer, start = _make_tiny_llama(Path("start"), seed=0)
    path = str(Path("reward-model").absolute())
    save_model(load_scalar_model(start, "float32", seed=0), tokenizer, Path(path))
    model = RewardModel(role="safety", path=path, settings=ReplicatedRewardRole(), policy_path=path)
    texts = ("What is this?", "How are you?")
    scores = model.score_tokens([tokenizer.encode(text) for text in texts])
    return f"scores {scores[0]:.3f} and {scores[1]:.3f}"


def check_weight_sync(place: Place) -> str:
    """Send a learner's weights to a sampler that has others; then both must say the same."""
    if place.address is not None and place.address.startswith("ray://"):
        raise NotChecked("through ray:// the parts would run on a machine without the model")
    from rayward.cluster.ray_runtime.session import ray_session

    settings = PPOSettings(sampling=_SAMPLING, rollout=_rollout_role())
    folder = Path.cwd()
    _, learned = _make_tiny_llama(folder / "learner", seed=0)
    tokenizer, other = _make_tiny_llama(folder / "sampler", seed=1)
    with ray_session(place.address, 2):
        import ray

        from rayward.actors.learning.learner import Learner
        from rayward.actors.sampling.rollout_worker import RolloutWorker, rollout_environment
        from rayward.cluster.ray_runtime.placement import Placement, RoleRequest

        # Where the models are; and little of it, for others may be at work there.
        node = ray.get_runtime_context().get_node_id()
        on_gpu = settings.rollout.precision == "bfloat16"
        here = Resources(cpus=0.5, gpus=0.5 if on_gpu else 0, labels={"ray.io/node-id": node})
        requests = [RoleRequest("policy", 1, here), RoleRequest("rollout", 1, here)]
        placement = Placement(requests, [("policy", "rollout")])
        (sampler,) = placement.start(
            "rollout",
            RolloutWorker,
            [
                {
                    "model": other,
                    "settings": settings.rollout,
                    "max_model_len": _SHAPE.max_position_embeddings,
                    "eos_token_id": int(tokenizer.eos_token_id),
                    "seed": 0,
                }
            ],
            rollout_environment(settings.rollout),
        )
        policy = {"role": "policy", "path": learned, "settings": settings, "rank": 0, "seed": 0}
        (learner,) = placement.start("policy", Learner, [policy], {})
        meeting: Any = ray.get(learner.rendezvous.remote())
        ray.get(learner.join.remote(*meeting))
        ray.get(sampler.version.remote())
        ray.get(learner.sync_weights.remote([sampler], 1))
        ids = tokenizer.encode(_PROMPT.messages[0].content)
        rollouts: Any = ray.get(
            sampler.generate.remote(
                [_PROMPT] * _ANSWERS, [ids] * _ANSWERS, list(range(_ANSWERS)), _SAMPLING, version=1
            )
        )
        scores: Any = ray.get(learner.score.remote(rollouts))
        placement.release()
    worst = max(
        float(np.abs(scores[index] - rollout.sampler_logprobs).max())
        for index, rollout in enumerate(rollouts)
    )
    _require_agreement(worst, settings.rollout.precision, "sampler", "learner")
    return f"weights arrived; logprobs of sampler and learner agree to {worst:.0e}"


def _rollout_role() -> RolloutRole:
    """A small engine, in the precision that its device wants."""
    import torch

    on_gpu = torch.cuda.is_available()
    return RolloutRole(
        precision="bfloat16" if on_gpu else "float32",
        max_num_seqs=_ANSWERS,
        # Of a GPU that others may be using; the model is tiny.
        gpu_memory_utilization=0.2,
    )


def _make_tiny_llama(folder: Path, seed: int) -> tuple["PreTrainedTokenizerFast", str]:
    """Write a random model; returns its tokenizer and its path."""
    from rayward.actors.models.loading import save_model
    from rayward.pipelines.run.start_model import make_llama, make_tokenizer

    tokenizer = make_tokenizer([], _SHAPE.vocab_size)
    save_model(make_llama(tokenizer, _SHAPE, seed), tokenizer, folder)
    return tokenizer, str(folder.absolute())


def _require_agreement(worst: float, precision: Precision, one: str, other: str) -> None:
    # Not `worst > tolerance`: nan must not pass.
    if not worst <= _TOLERANCE[precision]:
        raise CheckFailed(f"logprobs of {one} and {other} differ by {worst:.1e}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
