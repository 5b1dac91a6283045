"""The PPO learner on several ranks learns what one rank learns, with adapters too.

One process stands for the group of one rank and two for the group of two; each trains all its
kinds one after the other, because most of the time would go into starting processes.
"""

import os
import pickle
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rayward.actors.learning.learner import Learner
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.types import Experience, Float32Array, Message, Prompt, Rollout, ScoredRollout
from tests import preloaded
from tests.tiny import tiny_tokenizer

BATCH = 14  # of uneven lengths, and not a multiple of the ranks in every microbatch
STEPS = 4


def experiences(version: int) -> list[Experience]:
    draw = np.random.default_rng(version)
    prompt = Prompt("p", (Message("user", "ask"),), None, None, False, False, "test")
    result = []
    for index in range(BATCH):
        start, length = 3 + index % 4, 1 + (7 * index) % 11

        def floats(length: int = length) -> np.ndarray:
            return draw.normal(size=length).astype(np.float32)

        rollout = Rollout(
            prompt=prompt,
            sample_index=0,
            policy_version=version,
            token_ids=draw.integers(0, 250, size=start + length),
            response_start=start,
            sampler_logprobs=floats(),
            finish_reason="stop",
        )
        scored = ScoredRollout(
            rollout=rollout,
            policy_logprobs=-5.5 + 0.1 * floats(),
            reference_logprobs=floats(),
            values=0.1 * floats(),
            safety=0.0,
            helpfulness=0.0,
            decided_by="safety",
            safety_weight=1.0,
            helpfulness_weight=0.0,
            reward=0.0,
        )
        result.append(Experience(scored, floats(), floats(), floats()))
    return result


def write_wide_llama(directory: Path) -> Path:
    """Matrices of 102400 elements: smaller ones ZeRO-3 would keep whole on every rank."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=320,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=10,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Kind:
    """What is trained, and how."""

    role: str
    zero_stage: int
    own: dict[str, Any]
    """Settings of the role beside those that all kinds have."""


LORA = {"lora": {"rank": 4, "save_as": "merged"}}
ADAPTER = {"lora": {"rank": 4, "save_as": "adapter"}}
RECOMPUTED = {"gradient_checkpointing": True}

ALONE = {
    "policy": Kind("policy", 0, {}),
    "critic": Kind("critic", 0, {}),
    "lora": Kind("policy", 0, LORA),
}
"""On one rank."""
SPLIT = {
    "policy": [
        *(Kind("policy", stage, {}) for stage in (0, 1, 2, 3)),
        Kind("policy", 3, RECOMPUTED),
    ],
    "critic": [Kind("critic", 0, {}), Kind("critic", 3, RECOMPUTED)],
    "lora": [Kind("policy", 1, LORA), Kind("policy", 3, ADAPTER | RECOMPUTED)],
}
"""On two ranks, under the name of what they must agree with."""


@dataclass(frozen=True)
class Outcome:
    """What came of one kind on one rank."""

    metrics: list[dict[str, float]]
    """Of each step."""
    scores: dict[int, Float32Array]
    """This rank's share."""
    recomputed_forwards: int
    """Forward passes of the first attention layer inside backward passes."""
    again: list[dict[str, float]]
    """The metrics of the last half of the steps, after a restore."""
    again_equal: bool
    """Whether the restored steps scored a batch as the first ones did, bit for bit."""
    checkpoint_bytes: int


def train(kind: Kind, model: Path, rank: int, ranks: int, port: int, folder: Path) -> Outcome:
    own = {
        "deepspeed": {"ranks": ranks, "zero_stage": kind.zero_stage},
        "optimizer": {"learning_rate": 1e-3},
        "max_tokens_per_microbatch": 40,
        **kind.own,
    }
    settings = PPOSettings.model_validate(
        {"batch_size": BATCH, "minibatch_size": 7, kind.role: own}
    )
    learner: Any = Learner(kind.role, str(model), settings, rank, seed=0)
    learner.join("127.0.0.1", port)
    layer = learner._model.model.layers[0].self_attn
    inside = 0

    def count(*_: object) -> None:
        nonlocal inside
        # Inside a backward pass: nothing but recomputation runs a layer there.
        inside += torch._C._current_graph_task_id() != -1

    layer.register_forward_pre_hook(count)

    def learn(versions: range) -> list[dict[str, float]]:
        return [learner.update(experiences(v), v, kl_coef=0.0) for v in versions]

    rollouts = [one.scored.rollout for one in experiences(99)]
    metrics = learn(range(STEPS // 2))
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    learner.save(checkpoint)
    metrics += learn(range(STEPS // 2, STEPS))
    scores = learner.score(rollouts[:9], rollouts[9:])
    learner.export(folder / "export")
    recomputed = inside
    learner.restore(checkpoint)
    again = learn(range(STEPS // 2, STEPS))
    repeated = learner.score(rollouts)
    return Outcome(
        metrics,
        scores,
        recomputed,
        again,
        all(np.array_equal(scores[index], repeated[index]) for index in scores),
        sum(path.stat().st_size for path in checkpoint.rglob("*.pt")),
    )


def run_rank(
    kinds: Sequence[tuple[str, Kind]], model: Path, rank: int, ranks: int, port: int, folder: Path
) -> None:
    outcomes = {name: train(kind, model, rank, ranks, port, folder / name) for name, kind in kinds}
    (folder / f"rank-{rank}.pkl").write_bytes(pickle.dumps(outcomes))


@dataclass(frozen=True)
class Trained:
    """What came of a group."""

    outcomes: list[dict[str, Outcome]]
    """Of each rank, by name."""
    folder: Path

    def scores(self, name: str) -> dict[int, Float32Array]:
        """Of the whole batch."""
        shares = [outcomes[name].scores for outcomes in self.outcomes]
        assert sum(map(len, shares)) == BATCH
        return {index: own for share in shares for index, own in share.items()}


def start_group(
    kinds: Sequence[tuple[str, Kind]], model: Path, ranks: int, folder: Path
) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    folder.mkdir()
    return [
        preloaded.call(run_rank, kinds, model, rank, ranks, port, folder) for rank in range(ranks)
    ]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory, preloading: None) -> dict[int, Trained]:
    """Both groups, by their number of ranks."""
    folder = tmp_path_factory.mktemp("groups")
    model = write_wide_llama(folder / "model")
    split = [
        (f"{name}-{index}", kind)
        for name, kinds in SPLIT.items()
        for index, kind in enumerate(kinds)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        processes = start_group(list(ALONE.items()), model, 1, folder / "alone")
        processes += start_group(split, model, 2, folder / "split")
    for process in processes:
        assert process.wait() == 0
    trained = {}
    for ranks, name in ((1, "alone"), (2, "split")):
        files = [folder / name / f"rank-{rank}.pkl" for rank in range(ranks)]
        outcomes = [pickle.loads(file.read_bytes()) for file in files]
        trained[ranks] = Trained(outcomes, folder / name)
    return trained


def assert_equal_metrics(one: dict[str, float], other: dict[str, float]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        # Whether a clip binds is yes or no: one of 79 tokens may stand on the edge.
        tolerance = 1.5 / 79 if "clipfrac" in name else 1e-4
        assert other[name] == pytest.approx(value, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "index"), [(name, i) for name, kinds in SPLIT.items() for i in range(len(kinds))]
)
def test_two_ranks_learn_what_one_does(groups: dict[int, Trained], name: str, index: int) -> None:
    alone, split = groups[1], groups[2]
    one = alone.outcomes[0][name]
    for other in (outcomes[f"{name}-{index}"] for outcomes in split.outcomes):
        assert len(other.metrics) == len(one.metrics) == STEPS
        for mine, theirs in zip(one.metrics, other.metrics, strict=True):
            assert_equal_metrics(mine, theirs)
    assert one.metrics[0] != one.metrics[-1]
    scores = split.scores(f"{name}-{index}")
    for row, own in alone.scores(name).items():
        assert scores[row] == pytest.approx(own, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index"), [("policy", 3), ("critic", 1), ("lora", 0)])
def test_two_ranks_leave_the_model_that_one_does(
    groups: dict[int, Trained], name: str, index: int
) -> None:
    files = [groups[1].folder / name, groups[2].folder / f"{name}-{index}"]
    one, other = (load_file(file / "export" / "model.safetensors") for file in files)
    assert one.keys() == other.keys()
    for key, weight in one.items():
        torch.testing.assert_close(other[key], weight, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_restored_learner_goes_on_bit_for_bit(groups: dict[int, Trained]) -> None:
    for group in groups.values():
        for outcomes in group.outcomes:
            for outcome in outcomes.values():
                assert outcome.again == outcome.metrics[STEPS // 2 :]
                assert outcome.again_equal


@pytest.mark.slow
def test_activations_are_computed_twice_where_that_is_asked_for(
    groups: dict[int, Trained],
) -> None:
    kinds = {f"{name}-{i}": kind for name, own in SPLIT.items() for i, kind in enumerate(own)}
    for outcomes in groups[2].outcomes:
        for name, outcome in outcomes.items():
            if "gradient_checkpointing" in kinds[name].own:
                # Two minibatches a step, of one microbatch at the least.
                assert outcome.recomputed_forwards >= 2 * STEPS
            else:
                assert outcome.recomputed_forwards == 0


@pytest.mark.slow
def test_adapters_alone_are_trained_and_kept(groups: dict[int, Trained]) -> None:
    alone, split = groups[1], groups[2]
    start = load_file(alone.folder.parent / "model" / "model.safetensors")
    merged = load_file(alone.folder / "lora" / "export" / "model.safetensors")
    assert merged.keys() == start.keys()
    moved = {name for name, weight in merged.items() if not torch.equal(weight, start[name])}
    assert moved == {name for name in start if "proj" in name}
    # Two layers of seven adapters of 2 x 4 x 320, each with two moments, in float32.
    own = alone.outcomes[0]
    assert 3 * 143360 < own["lora"].checkpoint_bytes < 5 * 143360 < own["policy"].checkpoint_bytes
    # ZeRO-3 on two ranks leaves an adapter that makes the model that one rank has merged.
    adapter = split.folder / "lora-1" / "export"
    assert not (adapter / "model.safetensors").exists()
    assert os.path.getsize(adapter / "adapter_model.safetensors") < 2 * 143360
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(path)(input_ids=ids).logits
            for path in (adapter, alone.folder / "lora" / "export")
        ]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=0)
