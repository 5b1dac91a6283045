"""The whole method in small, through the command line, as a person runs it."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rayward.cluster.records.attempts import read_attempts
from rayward.cluster.records.best_samples import read_best
from rayward.cluster.records.distilled import read_distilled
from rayward.cluster.records.plan import evaluation_of, measured_policies
from rayward.cluster.records.rejection_sampling import RewardCurve
from rayward.cluster.records.samples import read_samples
from rayward.cluster.records.tables import DataDirectory, read_prompts
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import read_metrics
from tests import preloaded

POLICIES = ["sft", "safety_sft", "rejection_sampling", "ppo", "context_distillation"]
STAGES = [
    "sft",
    "safety_sft",
    "reward_safety",
    "reward_helpfulness",
    "rejection_sampling",
    "ppo",
    "red_teaming",
    "context_distillation",
]
Finished = tuple[RunDirectory, subprocess.CompletedProcess[str]]
SAMPLING = {"max_prompt_tokens": 96, "max_response_tokens": 24}
RECIPE: dict[str, Any] = {
    "name": "small",
    "data": {
        "tiny_world": {
            "demonstrations": 400,
            "safety_demonstrations": 42,
            "seed_prompts": 12,
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
    "stages": STAGES,
    "sft": {"batch_size": 32, "max_steps": 40, "optimizer": {"learning_rate": 1.0e-2}},
    "safety_sft": {"max_steps": 1},
    "reward_safety": {"max_steps": 2},
    "reward_helpfulness": {"max_steps": 2},
    "rejection_sampling": {
        "samples_per_prompt": 4,
        "prompts": 30,
        "sampling": SAMPLING,
        "temperature_search": {"temperatures": [0.7, 1.0], "prompts": 5},
        "fit": {"max_steps": 2},
    },
    "ppo": {"steps": 2, "batch_size": 24, "minibatch_size": 12, "sampling": SAMPLING},
    "red_teaming": {"seed_prompts": 5, "sampling": SAMPLING},
    "context_distillation": {"prompts": 30, "sampling": SAMPLING, "fit": {"max_steps": 2}},
    "evaluation": {"sampling": SAMPLING},
    # Models this small are no better than chance; the gates are asked all the same.
    "gates": {
        "max_violation_rise": 1.0,
        "max_false_refusals": 1.0,
        "max_borderline_false_refusals": 1.0,
        "max_helpfulness_fall": 1.0,
    },
}


def rayward(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        preloaded.command(*arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(ray_session: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("job")
    (folder / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    # A user's own folders must not be taken for ours.
    for room in ("services", "cluster"):
        (folder / room).mkdir()
        (folder / room / "__init__.py").write_text("raise RuntimeError('not this one')")
    # Nor his modules for a library's, not even by Ray's workers.
    (folder / "queue.py").write_text("raise RuntimeError('not this one')")
    # Nor a checkout that he has there for the package.
    (folder / "rayward").mkdir()
    done = rayward(folder, "run", "small.yaml", "--out", "out", "--address", ray_session)
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
        measured = stage["name"] in POLICIES
        assert stage["judge"] == ("oracle" if measured else None)
        assert stage["adversarial_prompts"] == (42 if measured else None)
        assert (stage["violation_rate"] is not None) is measured
    for stage_id in ("reward_safety", "reward_helpfulness"):
        assert 0 <= summary["reward_models"][stage_id]["accuracy"] <= 1
        assert summary["reward_models"][stage_id]["pairs"] == 40
    assert str(run.report_path) in done.stderr


@pytest.mark.slow
def test_what_a_run_leaves(finished: Finished) -> None:
    run, _ = finished
    assert run.status().state == "succeeded"
    trained = set(STAGES) - {"red_teaming"}
    assert {row["stage"] for row in read_metrics(run.metrics_path)} == trained
    assert set(run.manifest()["lineage"]) == trained
    assert "<svg" in run.report_path.read_text()
    assert measured_policies(run.recipe()) == POLICIES
    asked = []
    for stage in POLICIES:
        AutoModelForCausalLM.from_pretrained(run.model_dir(stage))
        samples = read_samples(run.samples_path(stage))
        assert len(samples) == 42 + 20 + 6
        # The reward models that came later score the first policies too.
        assert all(s.safety is not None and s.verdict is not None for s in samples)
        asked.append([sample.prompt.id for sample in samples])
    assert all(ids == asked[0] for ids in asked)
    for stage in ("reward_safety", "reward_helpfulness"):
        AutoModelForSequenceClassification.from_pretrained(run.model_dir(stage))
    promoted = json.loads(run.promoted_path.read_text())
    assert promoted["policy"] == "context_distillation"
    assert promoted["model"] == str(run.model_dir("context_distillation"))
    assert [gate["policy"] for gate in promoted["gates"]] == POLICIES


@pytest.mark.slow
def test_rejection_sampling_kept_the_best(finished: Finished) -> None:
    run, _ = finished
    result = run.stage_result("rejection_sampling")
    assert result is not None
    best = read_best(run.output_dir("rejection_sampling"))
    assert len(best) == result["best"] == 30 - result["prompts_without_answer"]
    assert result["samples"] == 30 * 4
    assert {row.round for row in best} == {1}
    assert len({row.prompt.id for row in best}) == len(best)
    trials = {one["temperature"]: one["best_reward"] for one in result["temperature_search"]}
    assert set(trials) == {0.7, 1.0}
    assert result["temperature"] == max(trials, key=lambda one: trials[one])
    for document in result["curves"].values():
        curve = RewardCurve.model_validate(document)
        assert len(curve.max) == len(curve.median) == 4
        assert list(curve.max) == sorted(curve.max)
        assert curve.max[0] == curve.median[0]
        assert all(top >= middle for top, middle in zip(curve.max, curve.median, strict=True))
    # Answers differ, so that more of them are better.
    assert result["curves"]["all"]["max"][-1] > result["curves"]["all"]["max"][0]


@pytest.mark.slow
def test_distillation_kept_only_what_is_safer(finished: Finished) -> None:
    run, _ = finished
    result = run.stage_result("context_distillation")
    assert result is not None
    tried = read_distilled(run.output_dir("context_distillation"))
    kept = [one for one in tried if one.kept]
    assert kept
    report = result["distillation"]
    refused = report["cut"] + report["leaked"] + report["empty"] + report["too_long"]
    assert len(tried) + refused == report["prompts"] == 30
    assert (report["kept"]["count"], report["kept"]["total"]) == (len(kept), len(tried))
    for one in tried:
        assert one.kept is (one.distilled_score > one.original_score)
        assert one.prompt.adversarial
    for one in kept:
        assert one.preprompt.text not in one.distilled
        assert all(message.role != "system" for message in one.demonstration.prompt.messages)
    assert report["gain"] > 0
    # As many benign demonstrations as kept answers, as they were.
    assert result["benign_replayed"] == len(kept)
    assert result["fit"]["rows"] == 2 * len(kept)


@pytest.mark.slow
def test_red_teaming_feeds_the_stage_behind_it(finished: Finished) -> None:
    run, _ = finished
    output = run.output_dir("red_teaming")
    result = run.stage_result("red_teaming")
    assert result is not None
    attempts = read_attempts(output / "attempts.parquet")
    found = result["red_teaming"]
    assert found["attempted"] == len(attempts)
    through = {one.prompt.id for one in attempts if one.got_through}
    assert found["kept"] == len(through)
    assert len(found["rounds"]) == 2
    if through:
        gathered = read_prompts(str(output / "prompts.parquet"))
        assert {prompt.id for prompt in gathered} == through
        assert all(prompt.adversarial and prompt.attack_vector for prompt in gathered)


@pytest.mark.slow
def test_one_changed_setting_redoes_only_what_depends_on_it(
    finished: Finished, ray_session: str
) -> None:
    run, _ = finished
    folder = run.root.parent
    change = "context_distillation.fit.optimizer.learning_rate=3.0e-5"
    asked = ["run", "small.yaml", "--out", "changed", "--set", change, "--address", ray_session]
    done = rayward(folder, *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    changed = RunDirectory(folder / "changed")
    names = [*STAGES, *(evaluation_of(policy) for policy in POLICIES)]
    again = {"context_distillation", evaluation_of("context_distillation")}
    for name in names:
        one, two = run.stage_document(name), changed.stage_document(name)
        assert one is not None
        assert two is not None
        assert (one["artifact"] == two["artifact"]) is (name not in again)
        assert two["result"].get("taken_from") == (None if name in again else str(run.root))
    lineage = [one.manifest()["lineage"] for one in (run, changed)]
    for stage in set(STAGES) - {"red_teaming"}:
        same = lineage[0][stage]["digest"] == lineage[1][stage]["digest"]
        assert same is (stage not in again)
    rows = [
        [row for row in read_metrics(one.metrics_path) if row["stage"] == "ppo"]
        for one in (run, changed)
    ]
    assert [row["actor/ppo_kl"] for row in rows[0]] == [row["actor/ppo_kl"] for row in rows[1]]
    # What was taken over stands by itself.
    assert changed.step_samples_path("ppo", 2).is_file()
    assert "<svg" in changed.report_path.read_text()
    compared = rayward(folder, "runs", "compare", "out", "changed")
    assert "context_distillation.fit.optimizer.learning_rate" in compared.stdout
    assert "2e-05" in compared.stdout


@pytest.mark.slow
def test_a_run_is_shown_with_where_it_comes_from(finished: Finished) -> None:
    run, _ = finished
    listed = rayward(run.root.parent, "runs", "list", ".")
    assert listed.returncode == 0, listed.stderr
    assert "succeeded" in listed.stdout
    shown = rayward(run.root.parent, "runs", "show", "out")
    assert shown.returncode == 0, shown.stderr
    lineage = run.manifest()["lineage"]
    for stage in ("context_distillation", "ppo", "reward_safety", "sft"):
        assert lineage[stage]["digest"] in shown.stdout
    for digest in run.manifest()["data"].values():
        if digest in json.dumps(run.stage_document("ppo")):
            assert digest in shown.stdout
    assert "seed 0" in shown.stdout


@pytest.mark.slow
def test_no_held_out_prompt_was_trained_on(finished: Finished) -> None:
    run, _ = finished
    data = DataDirectory(str(run.root / "data"))
    held_out = {prompt.messages for prompt in read_prompts(data.prompts("held_out"))}
    for step in (1, 2):
        trained = {
            sample.prompt.messages for sample in read_samples(run.step_samples_path("ppo", step))
        }
        assert trained
        assert not trained & held_out


@pytest.mark.slow
def test_no_text_of_prompts_or_answers_is_in_the_logs(finished: Finished) -> None:
    run, done = finished
    sample = read_samples(run.samples_path("sft"))[0]
    assert sample.prompt.messages[-1].content not in done.stderr
    (distilled, *_) = read_distilled(run.output_dir("context_distillation"))
    assert distilled.prompt.messages[-1].content not in done.stderr


@pytest.mark.slow
def test_two_rounds_stopped_half_way_and_gone_on_with(finished: Finished, ray_session: str) -> None:
    run, _ = finished
    folder = run.root.parent
    recipe = {
        "name": "rounds",
        "data": RECIPE["data"],
        "model": {"path": str(run.model_dir("sft"))},
        "stages": ["rejection_sampling"],
        "rounds": 2,
        "rejection_sampling": RECIPE["rejection_sampling"] | {"temperature_search": None},
        "ppo": {
            axis: {"path": str(run.model_dir(f"reward_{axis}"))}
            for axis in ("safety", "helpfulness")
        },
        "evaluation": RECIPE["evaluation"],
    }
    (folder / "rounds.yaml").write_text(yaml.safe_dump(recipe))
    rounds = RunDirectory(folder / "rounds")
    # With a Ray of its own, as without an address.
    command = preloaded.command("run", "rounds.yaml", "--out", "rounds")
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:
        # The answers are there, and the fit to them is not.
        while not rounds.output_dir("rejection_sampling").is_dir():
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
    assert rounds.status().state == "stopped"
    assert rounds.stage_result("rejection_sampling") is None
    files = [
        rounds.stage_path("evaluation/start"),
        rounds.output_dir("rejection_sampling") / "best.parquet",
    ]
    written = [file.stat().st_mtime_ns for file in files]
    asked = ["run", "rounds.yaml", "--out", "rounds", "--resume", "--address", ray_session]
    done = rayward(folder, *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [file.stat().st_mtime_ns for file in files] == written
    first = read_best(rounds.output_dir("rejection_sampling"))
    second = read_best(rounds.output_dir("rejection_sampling-2"))
    # Each earlier best survives beside the newest, the answer as it was.
    survived = [row for row in second if row.round == 1]
    assert {(row.prompt.id, row.response) for row in survived} == {
        (row.prompt.id, row.response) for row in first
    }
    assert [row for row in second if row.round == 2]
    result = rounds.stage_result("rejection_sampling-2")
    assert result is not None
    assert result["earlier_best"] == len(first)
    assert result["fit"]["rows"] >= len({(row.prompt.id, row.response) for row in second})
    # The second round began where the first did.
    lineage = rounds.manifest()["lineage"]
    assert lineage["rejection_sampling-2"]["parents"] == {"start": str(run.model_dir("sft"))}
    summary = json.loads(done.stdout)
    assert [stage["name"] for stage in summary["stages"]] == [
        "start",
        "rejection_sampling",
        "rejection_sampling-2",
    ]
