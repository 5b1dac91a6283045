"""SFT, reward models and PPO with other people's models: each family through the whole job.

All kinds share a Ray, which runs PPO for two of them at a time, and a helper, a process that trains
what comes before PPO and reads what comes out with vLLM. One kind goes through Ray Train instead.
"""

import gc
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import rayward.pipelines.supervised.reward_model
import rayward.pipelines.supervised.sft
from rayward.actors.models.forward import response_logprobs
from rayward.actors.models.loading import load_causal_lm, load_tokenizer
from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.roles import RolloutRole
from rayward.cluster.config.supervised import SupervisedSettings
from rayward.cluster.records.plan import make_plan
from rayward.cluster.records.samples import read_samples
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import MetricsWriter, read_metrics
from rayward.cluster.types import AXES, Message, Prompt
from rayward.pipelines.run.context import RunContext, open_context
from rayward.pipelines.run.data import load_data
from rayward.pipelines.runner.run_recipe import run_together
from rayward.pipelines.stage import stage_of
from rayward.pipelines.supervised.fit import FitResult
from rayward.pipelines.supervised.loop import Job, StepReport, SupervisedTask, run_rank
from tests import preloaded
from tests.tiny import write_tiny, write_tiny_classifier

pytestmark = pytest.mark.slow

STEPS = 3


@dataclass(frozen=True)
class Kind:
    """A row of the table: a model, and what is special about its run."""

    model: str
    """One of `tests.tiny.KINDS`."""
    is_tied: bool
    on_ray_train: bool = False
    bert_judges: bool = False
    """The safety model is a BERT that is given by path."""
    settings: dict[str, Any] = field(default_factory=dict)
    """By dotted name, on top of `recipe`."""


TABLE = {
    # An untied Llama whose weights are all trained is what `test_ppo.py` runs.
    "llama_tied": Kind("llama_tied", is_tied=True, bert_judges=True),
    "qwen2": Kind("qwen2", is_tied=True, on_ray_train=True),
    "gpt2": Kind("gpt2", is_tied=True),
    "llama_lora": Kind(
        "llama",
        is_tied=False,
        settings={
            "sft.lora": {"rank": 4},
            "ppo.policy.lora": {"rank": 4},
            "ppo.policy.gradient_checkpointing": True,
        },
    ),
}
# What goes through Ray Train takes longest, and begins at once.
ORDER = sorted(TABLE, key=lambda name: not TABLE[name].on_ray_train)


def recipe(kind: Kind, folder: Path) -> Recipe:
    """The whole job in very small, from a model on disk."""
    sampling = {"max_prompt_tokens": 300, "max_response_tokens": 12}
    few = {"max_steps": 3, "batch_size": 4, "optimizer": {"learning_rate": 1e-3}}
    learner = {"optimizer": {"learning_rate": 1e-3}}
    document: dict[str, Any] = {
        "name": "kinds",
        "seed": 5,
        "data": {
            "tiny_world": {
                "demonstrations": 42,
                "train_prompts": 42,
                "safety_pairs": 12,
                "helpfulness_pairs": 12,
                "held_out_adversarial": 21,
                "held_out_benign": 2,
                "held_out_borderline": 2,
                "held_out_pairs": 2,
                "validation_adversarial": 0,
                "validation_benign": 0,
            }
        },
        "model": {"path": str(write_tiny(folder / "start", kind.model))},
        "stages": ["sft", "reward_safety", "reward_helpfulness", "ppo"],
        "sft": deepcopy(few),
        "reward_safety": deepcopy(few),
        "reward_helpfulness": deepcopy(few),
        "ppo": {
            "steps": STEPS,
            "batch_size": 8,
            "minibatch_size": 4,
            "sampling": sampling,
            "policy": deepcopy(learner),
            "critic": deepcopy(learner),
            "early_stop": None,
        },
        "evaluation": {"sampling": sampling, "adversarial_prompts": 4},
    }
    if kind.bert_judges:
        document["ppo"]["safety"] = {"path": str(write_tiny_classifier(folder / "safety"))}
        document["stages"].remove("reward_safety")
    for name, value in kind.settings.items():
        *parents, leaf = name.split(".")
        section = document
        for parent in parents:
            section = section[parent]
        section[leaf] = value
    return parse_recipe(document)


def fit_here(
    task: SupervisedTask[Any],
    settings: SupervisedSettings,
    output: Path,
    seed: int,
    storage: Path,
    on_progress: Callable[[StepReport], None],
) -> FitResult:
    """`rayward.pipelines.supervised.fit.fit` in this process: Ray Train takes its time to start."""
    reports = Mock(put=lambda report: on_progress(StepReport(**report)))
    output.parent.mkdir(exist_ok=True)
    result = run_rank(Job(task, settings, output, seed, reports), rank=0, ranks=1)
    return FitResult(output=output, loss=0.0, tokens=0, **vars(result))


def train_here(run: RunDirectory) -> None:
    """The stages before PPO."""
    with opened(run) as context:
        plan = {stage.id: stage for stage in make_plan(context.recipe)}
        stage_of("sft").run(context, plan["sft"])
        for axis in AXES:
            if f"reward_{axis}" in plan:
                stage_of(f"reward_{axis}").run(context, plan[f"reward_{axis}"])


@contextmanager
def opened(run: RunDirectory) -> Iterator[RunContext]:
    recipe = run.recipe()
    with MetricsWriter(run.metrics_path, run.tensorboard_dir) as metrics:
        data = load_data(recipe, run)
        with open_context(run, data, metrics, threading.Event()) as context:
            yield context


def read_with_vllm(model: Path) -> tuple[int, float]:
    """How many tokens vLLM sampled, and how far their logprobs are from transformers' at most."""
    from rayward.actors.sampling.rollout_worker import RolloutWorker

    rows = [[5, 6, 7, 8], [9] * 30, list(range(40, 60))]
    prompt = Prompt("p", (Message("user", "x"),), None, None, False, False, "test")
    sampling = SamplingSettings(max_response_tokens=12)
    eos = int(load_tokenizer(str(model)).eos_token_id)
    worker = RolloutWorker(str(model), RolloutRole(), 64, eos, seed=0, version=0)
    rollouts = worker.generate([prompt] * 3, rows, [1, 2, 3], sampling, 0, [0] * 3)
    plain = load_causal_lm(str(model), "float32")
    with torch.no_grad():
        ours, _ = response_logprobs(plain, rollouts, 1.0, with_entropy=False)
    theirs = np.concatenate([rollout.sampler_logprobs for rollout in rollouts])
    return len(theirs), float(np.abs(ours.numpy() - theirs).max())


def wait_for(run: RunDirectory, stage: str, helper: subprocess.Popen[bytes] | None = None) -> None:
    """Until a stage is done; the helper, if it is waited for, must live."""
    while run.stage_result(stage) is None:
        assert helper is None or helper.poll() in (None, 0)
        time.sleep(0.2)


def help_out(roots: dict[str, Path], store: Path, answers: Path) -> None:
    """In a process of its own: what comes before PPO of several runs, and what comes after."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 1), rank=0, world_size=1)
    rayward.pipelines.supervised.sft.fit = rayward.pipelines.supervised.reward_model.fit = fit_here
    runs = {name: RunDirectory(root) for name, root in roots.items()}
    for name in ORDER:
        if not TABLE[name].on_ray_train:
            train_here(runs[name])
    dist.destroy_process_group()
    read = {}
    for name in ORDER:
        wait_for(runs[name], "ppo")
        read[name] = read_with_vllm(runs[name].model_dir("ppo"))
        # What engines of one process share goes with the old one, not under the new one's feet.
        gc.collect()
    answers.write_text(json.dumps(read))


@dataclass
class Finished:
    """The runs, by kind, and what vLLM made of their results."""

    runs: dict[str, RunDirectory]
    vllm: dict[str, tuple[int, float]]


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    from rayward.actors.sampling.rollout_worker import rollout_environment
    from rayward.pipelines.ppo.train import run_ppo

    folder = tmp_path_factory.mktemp("kinds")
    runs: dict[str, RunDirectory] = {}
    for name, kind in TABLE.items():
        runs[name] = RunDirectory.create(folder / name, recipe(kind, folder / f"{name}-models"))
        load_data(runs[name].recipe(), runs[name])
    roots = {name: run.root for name, run in runs.items()}
    with pytest.MonkeyPatch.context() as environment:
        for variable, value in rollout_environment(RolloutRole()).items():
            environment.setenv(variable, value)
        helper = preloaded.call(help_out, roots, folder / "store", folder / "vllm.json")

    def whole(name: str) -> None:
        if not TABLE[name].on_ray_train:
            wait_for(runs[name], "reward_helpfulness", helper)
        with opened(runs[name]) as context:
            plan = {stage.id: stage for stage in make_plan(context.recipe)}
            if TABLE[name].on_ray_train:
                stage_of("sft").run(context, plan["sft"])
                run_together(context, [plan["reward_safety"], plan["reward_helpfulness"]])
            run_ppo(context, plan["ppo"])

    try:
        with ThreadPoolExecutor(max_workers=2) as pool:
            for job in [pool.submit(whole, name) for name in ORDER]:
                job.result()
        assert helper.wait() == 0
    finally:
        helper.terminate()
    return Finished(runs, json.loads((folder / "vllm.json").read_text()))


@pytest.mark.parametrize("name", TABLE)
def test_ppo_learns_and_the_sampler_follows(finished: Finished, name: str) -> None:
    run = finished.runs[name]
    rows = [row for row in read_metrics(run.metrics_path) if row["stage"] == "ppo"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    # The sampler's weights came from the learner anew after each step.
    assert max(row["rollout/logprob_diff_mean"] for row in rows) < 1e-5
    assert rows[0]["actor/reference_kl"] == pytest.approx(0, abs=1e-6)
    assert abs(rows[-1]["actor/reference_kl"]) > 1e-6
    assert min(row["actor/grad_norm"] for row in rows) > 0
    assert min(row["critic/grad_norm"] for row in rows) > 0


@pytest.mark.parametrize("name", TABLE)
def test_what_comes_out_is_a_model_of_its_kind(finished: Finished, name: str) -> None:
    run, kind = finished.runs[name], TABLE[name]
    start = AutoModelForCausalLM.from_pretrained(run.recipe().model.path)
    model, info = AutoModelForCausalLM.from_pretrained(
        run.model_dir("ppo"), output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(model) is type(start)
    head, embedding = (
        module.weight.data_ptr()
        for module in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    assert (head == embedding) is kind.is_tied is model.config.tie_word_embeddings
    with safe_open(run.model_dir("ppo") / "model.safetensors", "pt") as weights:
        assert ("lm_head.weight" in weights.keys()) is not kind.is_tied  # noqa: SIM118
    sft = AutoModelForCausalLM.from_pretrained(run.model_dir("sft")).state_dict()
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, sft[key])]
    assert len(moved) > len(sft) / 2
    for axis in AXES:
        if f"reward_{axis}" in run.recipe().stages:
            scalar = AutoModelForSequenceClassification.from_pretrained(
                run.model_dir(f"reward_{axis}")
            )
            assert scalar.num_labels == 1


@pytest.mark.parametrize("name", TABLE)
def test_vllm_reads_it_as_transformers_does(finished: Finished, name: str) -> None:
    tokens, difference = finished.vllm[name]
    assert tokens > 3
    assert difference < 1e-4


def test_a_safety_model_that_reads_letters_scored_the_texts(finished: Finished) -> None:
    run = finished.runs["llama_tied"]
    path = run.recipe().ppo.safety.path
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    assert tokenizer.get_vocab() != load_tokenizer(str(run.model_dir("ppo"))).get_vocab()
    samples = [
        sample
        for step in range(1, STEPS + 1)
        for sample in read_samples(run.step_samples_path("ppo", step))
    ]
    assert len(samples) == STEPS * 8
    for sample in samples:
        turns = [
            {"role": message.role, "content": message.content} for message in sample.prompt.messages
        ]
        encoded = tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": sample.response}],
            return_dict=True,
            return_tensors="pt",
            continue_final_message=sample.finish_reason == "length",
        )
        with torch.no_grad():
            assert sample.safety == pytest.approx(float(model(**encoded).logits), abs=1e-6)
    assert np.ptp([sample.safety for sample in samples]) > 1e-3
