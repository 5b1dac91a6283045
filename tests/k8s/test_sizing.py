"""Sizing: parameters as transformers counts them, memory and times worked out by hand."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers import LlamaForSequenceClassification as LlamaClassifier

from rayward.cluster.cli import main
from rayward.cluster.config.load import make_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import InputError
from rayward.k8s.memory import kv_bytes
from rayward.k8s.shapes import LLAMA_2, Shape, llama_parameters, read_shape
from rayward.k8s.sizing import (
    GIB,
    RoleSize,
    Size,
    default_gpu_memory_gib,
    default_recipe,
    size,
)
from rayward.k8s.step_time import StepTime

SEVEN = LLAMA_2["7B"]
SMALL = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 160}


def small_config(tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )


def recipe(*changes: str) -> Recipe:
    document = {"name": "t", "data": {"tiny_world": {}}, "model": {"make": {}}}
    return make_recipe(document, list(changes))


def roles(found: Size) -> dict[str, RoleSize]:
    return {one.role: one for one in found.roles}


# Parameters


def test_llama_2_has_the_parameters_that_are_published() -> None:
    assert {name: shape.parameters for name, shape in LLAMA_2.items()} == {
        "7B": 6_738_415_616,
        "13B": 13_015_864_320,
        "70B": 68_976_648_192,
    }


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_transformers(tmp_path: Path, tied: bool) -> None:
    model = LlamaForCausalLM(small_config(tied))
    assert llama_parameters(**SMALL, vocabulary=300, head_is_tied=tied) == model.num_parameters()
    model.config.save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    assert shape == Shape(
        str(tmp_path), 64, 2, 4, 2, 16, 160, 300, model.num_parameters(), head_is_tied=tied
    )
    scalar = LlamaClassifier(LlamaConfig(**{**small_config(tied).to_dict(), "num_labels": 1}))
    assert shape.scalar_parameters == scalar.num_parameters()


def test_other_decoders_are_counted_too(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4))
    model.config.save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    assert shape.parameters == model.num_parameters()
    assert (shape.kv_heads, shape.head_size, shape.intermediate) == (4, 16, 256)
    with pytest.raises(InputError, match=r"^--model: got '/none'"):
        read_shape("/none")


# A recipe


def test_seven_billion_by_hand() -> None:
    """The gpu overlay: 8 ranks, minibatches of 64 answers of up to 256 + 64 tokens."""
    parameters = 6_738_415_616
    found = size(default_recipe(SEVEN), SEVEN, 80)
    by_role = roles(found)
    policy = by_role["policy"]
    assert (policy.processes, policy.gpus, policy.group, policy.fits) == (8, 1, "learner", True)
    assert policy.memory.weights == 2 * parameters / 8
    assert policy.memory.gradients == 6 * parameters / 8
    assert policy.memory.optimizer == 12 * parameters / 8
    # 8 rows of 320 tokens, with gradient checkpointing.
    assert policy.memory.activations == 2 * (32 * 4096 + 76_800) * 2560
    assert policy.memory.logits == 8 * 65 * 32_000 * 14
    assert policy.memory.loading == 2 * parameters
    # A layer's weights and those ahead; 5e8 gradients in two dtypes; an optimizer's step, which
    # takes more than the activations that are gone by then; and what no tensor is.
    assert policy.memory.gathered == 2 * 1.05e9
    assert policy.memory.buckets == 6 * 5e8
    assert policy.memory.stepping == 8 * parameters / 8
    assert policy.memory.context == 2 * GIB
    assert policy.memory.total == 20 * parameters / 8 + 6 * 5e8 + parameters + 2 * GIB
    assert round(policy.memory.total / GIB, 1) == 26.8
    # No head but for one output.
    critic = by_role["critic"].memory
    assert critic.weights == 2 * (parameters - 32_000 * 4096 + 4096) / 8
    assert critic.logits == 0
    # 25 rows of 320 tokens fit into 8192.
    reference = by_role["reference"].memory
    assert reference.weights == 2 * parameters
    assert reference.activations == 2 * 76_800 * 8000
    assert reference.logits == 25 * 65 * 32_000 * 10
    # 4 engines on 2 GPUs each draw 512 answers: 128 at a time, with 320 tokens in the cache.
    rollout = by_role["rollout"]
    assert (rollout.processes, rollout.gpus, rollout.sequences) == (4, 2, 128)
    assert rollout.memory.weights == 2 * parameters / 2
    assert rollout.memory.kv_cache == 10 * GIB
    # Equal stages are one row.
    assert by_role["reward_safety, reward_helpfulness"].memory.logits == 0
    # 512 rows of 512 tokens on 8 ranks, in microbatches of 8192 / 512 = 16.
    assert by_role["sft"].memory.logits == 8 * 512 * 32_000 * 14
    assert found.gpus == 8 + 8 + 4 + 2 + 2 + 8
    assert found.nodes == {"learner": 2, "rollout": 1, "reward": 1}


def test_seven_billions_step_by_hand() -> None:
    parameters, tokens = 6_738_415_616, 512 * 320
    step = size(default_recipe(SEVEN), SEVEN, 80).step
    assert step is not None
    compute, memory = 0.4 * 312e12, 0.6 * 2.0e12
    # 128 answers of one engine at once: the weights, and a cache of 288 tokens on the average.
    read = 2 * parameters + 128 * 288 * 512 * 1024
    prompts = 2 * parameters * 128 * 256 / (2 * compute)
    assert step.generation == pytest.approx(64 * read / (2 * memory) + prompts)
    assert step.generation_is_prompts
    # The reward models have two GPUs each.
    assert step.scoring == pytest.approx(2 * parameters * tokens / (2 * compute))
    # With checkpointing 8 operations; the traffic of 8 microbatches by NVLink takes less.
    assert step.learning == pytest.approx(8 * parameters * tokens / (8 * compute))
    assert 3 * 2 * parameters * 7 / 8 * 8 / 300e9 < step.learning
    assert not step.learning_is_traffic
    # A node's 100 Gbit/s, of which 60 % are reached.
    assert step.sync == pytest.approx(2 * parameters / 7.5e9)
    assert sum(step.shares.values()) == pytest.approx(1)


def test_seventy_billions_need_larger_gpus() -> None:
    """A rank loads all weights, and a scorer keeps them: 2 x 69e9 bytes are 128.5 GiB."""
    shape = LLAMA_2["70B"]
    there = size(default_recipe(shape), shape, 80)
    fits = {role: one.fits for role, one in roles(there).items()}
    assert fits == {**dict.fromkeys(fits, False), "rollout": True}
    assert there.step is None
    policy = roles(there)["policy"].memory
    assert policy.loading == 2 * 68_976_648_192
    assert policy.total == policy.loading + policy.context
    assert there.least_gpu_memory == roles(there)["reference"].memory.total
    assert default_gpu_memory_gib(shape) == 167
    enough = size(default_recipe(shape), shape, 167)
    assert all(one.fits for one in enough.roles)
    assert enough.step is not None
    assert enough.step.learning_is_traffic  # 16 ranks are two nodes
    assert enough.nodes == {"learner": 4, "rollout": 4, "reward": 1}


def test_an_engine_takes_what_is_left() -> None:
    """80 GiB x 0.9 less 12.55 of weights and 2 hold 57.4 GiB; an answer takes 160 MiB."""
    one_gpu = "{resources: {gpus: 1.0}, precision: bfloat16, max_num_seqs: 9999}"
    found = roles(size(recipe(f"ppo.rollout={one_gpu}"), SEVEN, 80))["rollout"]
    assert found.sequences == int(
        (0.9 * 80 * GIB - 2 * SEVEN.parameters - 2 * GIB) / (320 * 512 * 1024)
    )
    assert found.sequences == 367
    none = roles(size(recipe(f"ppo.rollout={one_gpu}"), SEVEN, 13))["rollout"]
    assert (none.sequences, none.fits) == (0, False)
    # 8 key-value heads over 16 GPUs are there twice.
    shape = LLAMA_2["70B"]
    split = (
        "{resources: {gpus: 8.0}, precision: bfloat16, tensor_parallel_size: 16, max_num_seqs: 1}"
    )
    wide = roles(size(recipe(f"ppo.rollout={split}"), shape, 80))["rollout"]
    assert wide.memory.kv_cache == 320 * kv_bytes(shape, "bfloat16") / 8


def test_a_share_of_a_gpu_is_all_that_a_role_has() -> None:
    """12.3 GiB of weights, 2.3 of activations, 2 of its own: two need 33.3 GiB on one GPU."""
    half = "ppo.safety={precision: bfloat16, resources: {gpus: 0.5}}"
    for memory, fits in ((33, False), (34, True)):
        found = size(recipe(half), SEVEN, memory)
        safety = roles(found)["safety"]
        assert round(safety.memory.total / GIB, 1) == 16.6
        assert safety.fits is fits
    assert found.least_gpu_memory == 2 * safety.memory.total


def test_on_cpus_nothing_is_judged() -> None:
    found = size(recipe(), SEVEN, 80)
    assert {one.fits for one in found.roles} == {None}
    assert (found.gpus, found.step, found.nodes) == (0, None, {"cpu": 1})
    # Of 1 GiB, at 1 MiB for a token.
    assert roles(found)["rollout"].sequences == 1024 // 320


def test_the_longest_phase_is_the_bottleneck() -> None:
    step = StepTime(1.0, 2.0, 3.0, 4.0, False, True)
    assert step.shares == {"generation": 0.1, "scoring": 0.2, "learning": 0.3, "sync": 0.4}
    assert step.bottleneck == "sync (the link between learner and rollout)"
    assert replace(step, learning=9.0).bottleneck == "learning (ZeRO-3's traffic)"
    compute = replace(step, learning=9.0, learning_is_traffic=False)
    assert compute.bottleneck == "learning (compute of learners)"
    assert replace(step, generation=9.0).bottleneck.endswith(
        "(memory bandwidth of the rollout GPUs)"
    )


# The command


def sizing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *given: object
) -> str:
    monkeypatch.setattr(sys, "argv", ["rayward", "k8s", "sizing", *map(str, given)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (0, "")
    return said.out


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = sizing(monkeypatch, capsys)
    for shape in LLAMA_2.values():
        assert f"{shape.name}: {shape.parameters:,} parameters" in said
    assert "PPO: 32 GPUs; nodes: 2 learner, 1 reward, 1 rollout" in said
    assert "PPO: 72 GPUs; nodes: 4 learner, 1 reward, 4 rollout" in said
    assert said.count("bottleneck: ") == len(LLAMA_2) == 3
    assert "does not fit" not in said
    (row,) = [line for line in said.splitlines() if "│ policy" in line and "16 x" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "policy", "16 x 1 GPU", "8.0", "24.1", "48.2", "2.0", "", "0.1", "4.7", "7.5", "2.0",
        "128.5", "130.5", "yes", "learner",
    ]  # fmt: skip


def test_smaller_gpus_and_a_faster_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = sizing(monkeypatch, capsys, "--gpu-memory-gib", 80)
    assert "does not fit: the largest role needs GPUs of 133.4 GiB, not 80.0" in small
    assert small.count("bottleneck: ") == 2

    def learning(*given: object) -> float:
        *_, large = json.loads(sizing(monkeypatch, capsys, "--json", *given))
        return float(large["step"]["learning"])

    slow, fast = learning("--network-gbit", 100), learning("--network-gbit", 200)
    assert learning() == slow == pytest.approx(2 * fast)
    # 8 microbatches of 16 ranks, by RDMA: arithmetic takes longer.
    assert learning("--network-gbit", 1600) < fast / 2


def test_what_has_no_gpus_counts_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (("demo",), ("demo", "--set", "stages=[sft]")):
        said = sizing(monkeypatch, capsys, *given)
        assert "\nnodes: 1 cpu" in said
        assert "GPUs" not in said


def test_a_recipe_a_model_and_an_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_config(False).save_pretrained(tmp_path)
    overlay = tmp_path / "topology.yaml"
    overlay.write_text("ppo: {reference: {replicas: 3}}\n")
    said = sizing(
        monkeypatch, capsys, "demo", "--overlay", overlay, "--set", "ppo.safety.replicas=2",
        "--model", tmp_path, "--model", tmp_path, "--json",
    )  # fmt: skip
    one, other = json.loads(said)
    assert one == other
    assert one["model"] == str(tmp_path)
    processes = {role["role"]: role["processes"] for role in one["roles"]}
    assert (processes["reference"], processes["safety"], processes["helpfulness"]) == (3, 2, 1)
    assert one["nodes"] == {"cpu": 1}
    policy = next(role for role in one["roles"] if role["role"] == "policy")
    assert policy["memory"]["weights"] == 4 * one["parameters"]
    assert policy["memory"]["total"] > policy["memory"]["optimizer"]


def test_it_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from rayward.cluster.cli import main\n"
        "sys.argv = ['rayward', 'k8s', 'sizing', '--json']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "print([one for one in ('torch', 'transformers', 'vllm') if one in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
