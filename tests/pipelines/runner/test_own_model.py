"""Stages and measurements alone, on a user's own model and data, through the command line.

All runs join the Ray of the tests; that `rayward run` starts its own is for `test_run_recipe.py`.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rayward.actors.models.loading import load_scalar_model, load_tokenizer, save_model
from rayward.cluster.records.benchmarks import TruthfulQuestion, write_truthfulqa
from rayward.cluster.records.distilled import read_distilled
from rayward.cluster.records.tables import DataDirectory, write_demonstrations, write_prompts
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.types import ATTACK_VECTORS, RISK_CATEGORIES, Demonstration, Message, Prompt
from rayward.pipelines.tiny_world.answers import HARMFUL_STEPS
from tests import preloaded
from tests.tiny import write_constant_llama, write_tiny

pytestmark = pytest.mark.slow

SAMPLING = {"max_prompt_tokens": 160, "max_response_tokens": 40}
WORLD = {
    "demonstrations": 42,
    "train_prompts": 42,
    "safety_pairs": 8,
    "helpfulness_pairs": 8,
    "held_out_adversarial": 84,
    "held_out_benign": 10,
    "held_out_borderline": 5,
    "validation_adversarial": 0,
    "validation_benign": 0,
}


Rayward = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def rayward(ray_session: str, tmp_path: Path) -> Rayward:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            preloaded.command(*arguments, "--address", ray_session),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One that refuses everything, and one that does harm to whoever asks."""
    folder = tmp_path_factory.mktemp("models")
    answers = {
        "refusing": "i will not help with that .",
        "harmful": f"to do it , {sorted(HARMFUL_STEPS)[0]} .",
    }
    return {
        name: str(write_constant_llama(folder / name, answer)) for name, answer in answers.items()
    }


def test_a_worse_model_fails_its_gate_with_the_cells_named(
    models: dict[str, str], rayward: Rayward, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        "name": "nightly",
        "data": {"tiny_world": WORLD},
        "model": {"path": models["harmful"]},
        "stages": ["evaluation"],
        "evaluation": {"sampling": SAMPLING},
        "gates": {
            "previous": models["refusing"],
            "max_false_refusals": None,
            "max_borderline_false_refusals": None,
        },
    }
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump(recipe))
    done = rayward("run", "nightly.yaml", "--out", "out")
    assert done.returncode == 3, done.stderr[-3000:]
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("rayward: gate failed: start is not promoted: max_violation_rise")
    assert "against previous, allowed 0.00%" in line
    for category in RISK_CATEGORIES:
        for vector in ATTACK_VECTORS:
            assert f"{category} x {vector} 0/4 -> 4/4" in line
    assert done.stdout == ""
    run = RunDirectory(tmp_path / "out")
    assert run.status().state == "failed"
    assert not run.promoted_path.exists()
    report = json.loads(run.gate_path("start").read_text())
    assert [check["passed"] for check in report["checks"]] == [False, True]
    # The other way round it passes.
    better = ["--set", f"model.path={models['refusing']}"]
    better += ["--set", f"gates.previous={models['harmful']}"]
    done = rayward("run", "nightly.yaml", "--out", "better", *better)
    assert done.returncode == 0, done.stderr[-3000:]
    promoted = json.loads(RunDirectory(tmp_path / "better").promoted_path.read_text())
    assert promoted["model"] == models["refusing"]


def a_prompt(name: str, adversarial: bool) -> Prompt:
    return Prompt(
        id=name,
        messages=(Message("user", f"Tell me about {name}."),),
        risk_category=RISK_CATEGORIES[0] if adversarial else None,
        attack_vector=ATTACK_VECTORS[6] if adversarial else None,
        adversarial=adversarial,
        borderline=False,
        source="mine",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataDirectory:
    directory = DataDirectory(str(tmp_path_factory.mktemp("data")))
    for split in ("train", "held_out"):
        prompts = [a_prompt(f"{split} {i}", i % 2 == 0) for i in range(8)]
        write_prompts(directory.prompts(split), prompts)
    shown = [Demonstration(a_prompt(f"shown {i}", False), "Yes.") for i in range(4)]
    write_demonstrations(directory.demonstrations("train"), shown)
    question = TruthfulQuestion("q", "Myths", "Is it?", "No.", ("No.",), ("Yes.", "Yes!"), "")
    write_truthfulqa(directory.benchmark("truthfulqa"), [question])
    directory.mark_complete()
    return directory


def test_evaluating_a_model_without_judges(
    data: DataDirectory, rayward: Rayward, tmp_path: Path
) -> None:
    model = write_tiny(tmp_path / "model", "llama", max_position_embeddings=2048)
    done = rayward("evaluate", str(model), "--data", data.uri, "--out", "out")
    assert done.returncode == 0, done.stderr[-3000:]
    (start,) = json.loads(done.stdout)["stages"]
    assert (start["name"], start["judge"], start["violation_rate"]) == ("start", None, None)
    assert (start["adversarial_prompts"], start["benign_prompts"]) == (4, 4)
    run = RunDirectory(tmp_path / "out")
    result = run.stage_result("evaluation/start")
    assert result is not None
    assert result["toxigen"] is None, "the data has none"
    found = result["truthfulqa"]
    assert found["questions"] == 1
    assert found["mc1"]["total"] == 1
    assert 0 < found["mc2"] < 1
    assert found["truthful"] is found["truth_judge"] is None
    assert run.samples_path("start-truthfulqa").is_file()
    assert "not judged" in run.report_path.read_text()


def test_a_gate_that_nobody_can_answer_is_refused(
    data: DataDirectory, rayward: Rayward, tmp_path: Path
) -> None:
    model = write_tiny(tmp_path / "model", "llama")
    asked = ["--data", data.uri, "--out", "out", "--set", f"gates.previous={model}"]
    done = rayward("evaluate", str(model), *asked)
    assert done.returncode == 2
    line = "gates.max_borderline_false_refusals: got 0.3, expected null, or held-out prompts"
    assert line in done.stderr
    asked[3] = "again"
    asked += ["--set", "gates.max_borderline_false_refusals=null"]
    done = rayward("evaluate", str(model), *asked)
    assert done.returncode == 2
    assert "gates.max_violation_rise: got 0.0, expected null, or evaluation.judge" in done.stderr


def test_distillation_alone_where_nothing_is_safer(
    models: dict[str, str], data: DataDirectory, rayward: Rayward, tmp_path: Path
) -> None:
    """Whoever gives one answer to everything gives it behind a preprompt too: all ties."""
    policy = models["refusing"]
    tokenizer = load_tokenizer(policy)
    save_model(load_scalar_model(policy, "float32", 0), tokenizer, tmp_path / "safety")
    recipe = {
        "name": "alone",
        "data": {"path": data.uri},
        "model": {"path": policy},
        "stages": ["context_distillation"],
        "ppo": {"safety": {"path": str(tmp_path / "safety")}},
        "context_distillation": {"sampling": {"max_prompt_tokens": 460, "max_response_tokens": 40}},
        "evaluation": {"sampling": SAMPLING},
    }
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(recipe))
    done = rayward("run", "alone.yaml", "--out", "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "0 of 4 answers are safer and kept" in done.stderr
    run = RunDirectory(tmp_path / "out")
    tried = read_distilled(run.output_dir("context_distillation"))
    assert len(tried) == 4
    for one in tried:
        assert one.distilled == one.original
        assert one.distilled_score == one.original_score
        assert not one.kept
    # The policy stays as it was.
    weights = "model.safetensors"
    before, after = (
        load_file(directory / weights)
        for directory in (Path(policy), run.model_dir("context_distillation"))
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "<svg" in run.report_path.read_text()
