"""Taking over what another run has made of the same things."""

import shutil
from pathlib import Path
from typing import get_args

from rayward.cluster.progress import announce
from rayward.cluster.records.plan import measured_by
from rayward.cluster.records.tables import BenchmarkName
from rayward.cluster.runs.artifacts import finished_beside, link_file, link_tree
from rayward.cluster.runs.manifest import directory_digest, source_digest
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import read_metrics
from rayward.pipelines.run.context import RunContext, is_marked


def adopt(context: RunContext, stage: str) -> bool:
    """Take a stage or measurement over from a run beside this one, if one has finished it.

    Whatever the stage left comes along: its model, output, samples and metrics.
    """
    run = context.run
    for root in finished_beside(run.root, context.artifacts[stage], source_digest()):
        other = RunDirectory(root)
        if not _is_whole(other, stage, context.artifacts[stage].name):
            continue
        _link_all(other, run, stage)
        context.metrics.truncate(stage, after_step=0)
        for row in read_metrics(other.metrics_path):
            if row["stage"] == stage:
                numbers = {name: row[name] for name in row if name not in ("stage", "step", "time")}
                context.log(row["step"], stage, numbers)
        lineage = other.manifest()["lineage"].get(stage)
        if lineage is not None:
            context.record_model(stage, lineage["parents"])
        document = other.stage_document(stage)
        assert document is not None
        context.complete(stage, document["result"] | {"taken_from": str(root)})
        announce(f"{stage}: taken from {root}, where it is the same")
        return True
    return False


def _is_whole(other: RunDirectory, stage: str, name: str) -> bool:
    """Whether what a stage left is still there: people clear up, and redo."""
    policy = measured_by(stage)
    if policy is not None:
        return other.samples_path(policy).is_file()
    output = other.output_dir(stage)
    result = other.stage_document(stage)
    sampled = result is not None and "sampling_seconds" in result["result"]
    if sampled and not is_marked(output, name):
        return False
    lineage = other.manifest()["lineage"].get(stage)
    if lineage is None:
        return is_marked(output, name)
    model = other.model_dir(stage)
    return model.is_dir() and directory_digest(model) == lineage["digest"]


def _link_all(other: RunDirectory, run: RunDirectory, stage: str) -> None:
    policy = measured_by(stage)
    if policy is not None:
        # Beside the answers on held-out prompts there may be those on benchmarks.
        for name in (policy, *(f"{policy}-{benchmark}" for benchmark in get_args(BenchmarkName))):
            if other.samples_path(name).is_file():
                link_file(other.samples_path(name), run.samples_path(name))
        return
    for source, target in (
        (other.model_dir(stage), run.model_dir(stage)),
        (other.output_dir(stage), run.output_dir(stage)),
        (other.root / "samples" / stage, run.root / "samples" / stage),
    ):
        _replace(source, target)


def _replace(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    if source.is_dir():
        link_tree(source, target)
