"""The whole job in small, through the command line, as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cluster.metrics import read_metrics
from cluster.run_directory import RunDirectory
from cluster.tables import DataDirectory, read_prompts
from pipelines.samples import read_samples

STAGES = ["sft", "reward_safety", "reward_helpfulness", "ppo"]
Finished = tuple[RunDirectory, subprocess.CompletedProcess[str]]
SAMPLING = {"max_prompt_tokens": 64, "max_response_tokens": 12}
RECIPE: dict[str, Any] = {
    "name": "small",
    "data": {
        "tiny_world": {
            "demonstrations": 400,
            "train_prompts": 84,
            "safety_pairs": 100,
            "helpfulness_pairs": 100,
            "held_out_adversarial": 42,
            "held_out_benign": 20,
            "held_out_borderline": 6,
            "held_out_pairs": 40,
            "validation_adversarial": 21,
            "validation_benign": 6,
        }
    },
    "model": {"make": {"hidden_size": 64, "heads": 2, "layers": 2, "vocab_size": 1024}},
    "sft": {"max_steps": 4},
    "reward_safety": {"max_steps": 2},
    "reward_helpfulness": {"max_steps": 2},
    "ppo": {"steps": 2, "batch_size": 24, "minibatch_size": 12, "sampling": SAMPLING},
    "evaluation": {"sampling": SAMPLING},
}


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    folder = tmp_path_factory.mktemp("job")
    (folder / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    # A user's own folders must not be taken for ours.
    for room in ("services", "cluster"):
        (folder / room).mkdir()
        (folder / room / "__init__.py").write_text("raise RuntimeError('not this one')")
    done = subprocess.run(
        [Path(sys.executable).with_name("rayward"), "run", "small.yaml", "--out", "out"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return RunDirectory(folder / "out"), done


@pytest.mark.slow
def test_the_summary_is_on_stdout_and_in_the_run(finished: Finished) -> None:
    run, done = finished
    summary = json.loads(done.stdout)
    assert summary == json.loads(run.summary_path.read_text())
    assert [stage["name"] for stage in summary["stages"]] == STAGES
    for stage in summary["stages"]:
        assert stage["seconds"] > 0
        measured = stage["name"] in ("sft", "ppo")
        assert stage["judge"] == ("oracle" if measured else None)
        assert stage["adversarial_prompts"] == (42 if measured else None)
        assert (stage["violation_rate"] is not None) is measured
    for axis in ("safety", "helpfulness"):
        assert 0 <= summary["reward_models"][axis]["accuracy"] <= 1
        assert summary["reward_models"][axis]["pairs"] == 40
    assert str(run.report_path) in done.stderr


@pytest.mark.slow
def test_what_a_run_leaves(finished: Finished) -> None:
    run, _ = finished
    assert run.status().state == "succeeded"
    assert {row["stage"] for row in read_metrics(run.metrics_path)} == set(STAGES)
    assert set(run.manifest()["lineage"]) == set(STAGES)
    assert "<svg" in run.report_path.read_text()
    for stage in ("sft", "ppo"):
        AutoModelForCausalLM.from_pretrained(run.model_dir(stage))
        samples = read_samples(run.samples_path(stage))
        assert len(samples) == 42 + 20 + 6
        assert all(s.safety is not None and s.verdict is not None for s in samples)
    for stage in ("reward_safety", "reward_helpfulness"):
        AutoModelForSequenceClassification.from_pretrained(run.model_dir(stage))


@pytest.mark.slow
def test_no_held_out_prompt_was_trained_on(finished: Finished) -> None:
    run, _ = finished
    data = DataDirectory(str(run.root / "data"))
    held_out = {prompt.messages for prompt in read_prompts(data.prompts("held_out"))}
    for step in (1, 2):
        trained = {sample.prompt.messages for sample in read_samples(run.ppo_samples_path(step))}
        assert trained
        assert not trained & held_out


@pytest.mark.slow
def test_no_text_of_prompts_or_answers_is_in_the_logs(finished: Finished) -> None:
    run, done = finished
    sample = read_samples(run.samples_path("sft"))[0]
    assert sample.prompt.messages[-1].content not in done.stderr
