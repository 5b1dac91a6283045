"""Which policies are due, and what is taken over from a run beside; nothing is run."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayward.cluster.runs.artifacts import Artifact
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import MetricsWriter, read_metrics
from rayward.pipelines.evaluation.measure import due, is_done
from rayward.pipelines.run.context import RunContext, open_context
from rayward.pipelines.run.data import load_data
from rayward.pipelines.runner.reuse import adopt
from tests.cluster.records.test_plan import a_recipe

SIZES = {"demonstrations": 42, "train_prompts": 4, "safety_pairs": 2, "helpfulness_pairs": 2}
STAGES = ["sft", "safety_sft", "reward_safety", "reward_helpfulness", "rejection_sampling"]


@contextmanager
def a_run(root: Path) -> Iterator[RunContext]:
    recipe = a_recipe(STAGES, data={"tiny_world": SIZES})
    with RunDirectory.create(root, recipe) as run:
        data = load_data(recipe, run)
        with (
            MetricsWriter(run.metrics_path, run.tensorboard_dir) as metrics,
            open_context(run, data, metrics, threading.Event()) as context,
        ):
            yield context


def finish(context: RunContext, stage: str) -> None:
    """As a stage that makes a model does."""
    model = context.begin(stage)
    model.mkdir(parents=True)
    (model / "config.json").write_text(stage)
    context.log(1, stage, {"train/loss": 0.5})
    context.record_model(stage, {})
    context.complete(stage, {"seconds": 1.0})


def test_policies_wait_for_the_models_that_score_them(tmp_path: Path) -> None:
    with a_run(tmp_path / "run") as context:
        finish(context, "sft")
        finish(context, "reward_safety")
        assert due(context) == []
        finish(context, "reward_helpfulness")
        assert due(context) == ["sft"]
        finish(context, "safety_sft")
        assert due(context) == ["sft", "safety_sft"]
        context.complete("evaluation/sft", {"seconds": 1.0})
        assert due(context) == ["safety_sft"]


def test_a_model_of_other_inputs_is_not_measured_under_the_new_name(tmp_path: Path) -> None:
    with a_run(tmp_path / "run") as context:
        for stage in ("sft", "reward_safety", "reward_helpfulness", "safety_sft"):
            finish(context, stage)
        other = Artifact("safety_sft", {"settings": "as they were"})
        context.run.complete_stage("safety_sft", {"seconds": 1.0}, other)
        assert not is_done(context, "safety_sft")
        assert due(context) == ["sft"]
        context.run.complete_stage("reward_safety", {"seconds": 1.0}, other)
        assert due(context) == []


def test_a_stage_that_is_begun_again_is_not_done(tmp_path: Path) -> None:
    with a_run(tmp_path / "run") as context:
        finish(context, "sft")
        assert is_done(context, "sft")
        context.begin("sft")
        assert not is_done(context, "sft")


def test_checkpoints_of_other_inputs_are_cleared_away(tmp_path: Path) -> None:
    with a_run(tmp_path / "run") as context:
        checkpoint = context.run.checkpoints_dir / "sft" / "step-000001"
        checkpoint.mkdir(parents=True)
        context.claim_checkpoints("sft")
        assert not checkpoint.exists()
        checkpoint.mkdir()
        context.claim_checkpoints("sft")
        assert checkpoint.exists(), "they are its own now"


def test_an_output_is_made_once_and_again_for_other_inputs(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(directory: Path) -> None:
        made.append(directory)
        (directory / "file").write_text(str(len(made)))

    with a_run(tmp_path / "run") as context:
        for _ in range(2):
            directory = context.output("sft", make)
        assert len(made) == 1
        (directory / "ARTIFACT").write_text("sft-other")
        assert (context.output("sft", make) / "file").read_text() == "2"

        def fail(directory: Path) -> None:
            (directory / "half").write_text("")
            raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError):
            context.output("safety_sft", fail)
        assert not context.run.output_dir("safety_sft").exists()
        context.output("safety_sft", make)
        leftovers = context.run.output_dir("safety_sft").parent.glob(".safety_sft*")
        assert list(leftovers) == []


def test_what_a_run_beside_has_finished_is_taken_over(tmp_path: Path) -> None:
    with a_run(tmp_path / "first") as context:
        finish(context, "sft")
        finish(context, "safety_sft")
    with a_run(tmp_path / "second") as context:
        assert adopt(context, "sft")
        assert not adopt(context, "reward_safety")
        run = context.run
        assert (run.model_dir("sft") / "config.json").read_text() == "sft"
        assert is_done(context, "sft")
        result = run.stage_result("sft")
        assert result is not None
        assert result["taken_from"] == str(tmp_path / "first")
        assert [row["train/loss"] for row in read_metrics(run.metrics_path)] == [0.5]
        assert run.manifest()["lineage"]["sft"]["digest"].startswith("sha256:")
        # What was cleared away, or changed, cannot be taken.
        model = tmp_path / "first" / "models" / "safety_sft"
        (model / "config.json").unlink()
        (model / "config.json").write_text("changed")
        assert not adopt(context, "safety_sft")
        shutil.rmtree(model)
        assert not adopt(context, "safety_sft")
