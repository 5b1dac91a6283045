"""A run is a directory: everything else reads it.

ROOT/recipe.yaml            the recipe, every default spelled out
     manifest.json          code, packages, data digests, lineage of the models
     status.json            how it stands
     metrics.jsonl          numbers by step; tensorboard/ holds the same
     tracking.json          which runs of experiment trackers are this one; wandb/ is theirs
     models/STAGE/          the model that a stage made
     outputs/STAGE/         whatever else it made, such as the best samples
     checkpoints/           what a running stage resumes from
     stages/STAGE.json      written last: the stage is done, what went in and what came out
     stages/evaluation/     the same of the measurements, by the stage whose policy was measured
     samples/STAGE.parquet  a policy's answers on held-out prompts; samples/ppo/step-000001.parquet
     gates/STAGE.json       how a policy fared at its gates
     promoted.json          the policy that passed every gate
     summary.json, report.html
     .lock                  held by the process that writes here
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict

from rayward.cluster.atomic import write_bytes
from rayward.cluster.config.load import load_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.topology import moved_settings
from rayward.cluster.errors import InputError
from rayward.cluster.runs.artifacts import Artifact
from rayward.cluster.runs.manifest import (
    code_version,
    directory_digest,
    new_manifest,
    ray_job,
    source_digest,
)
from rayward.cluster.runs.run_lock import LOCK, acquire

RunState = Literal["running", "succeeded", "failed", "stopped"]

# What a run has written, beside its lock, when it was killed before it had begun.
_BEGINNING = re.compile(
    r"manifest\.json|status\.json|\.(manifest\.json|status\.json|recipe\.yaml)\.[0-9a-f]{32}\.tmp"
)


class RunStatus(BaseModel):
    """How a run stands."""

    model_config = ConfigDict(frozen=True)

    state: RunState
    stage: str | None
    updated: datetime  # UTC
    error: str | None  # one line


class RunDirectory:
    """A run on disk. `RunDirectory(root)` reads; `create` and `resume` also lock it for writing."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, root: Path, recipe: Recipe) -> Self:
        """Start a run in a directory that is empty or not there yet, and lock it.

        Raises:
            InputError: there is something at `root`, or another process is using it.
        """
        run = cls(root)
        run._refuse_contents()
        try:
            run.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            expected = f"a directory that can be made ({error.strerror})"
            raise InputError("--out", str(root), expected) from error
        run._lock = acquire(run.root)
        # Another process may have been faster between the look and the lock.
        run._refuse_contents()
        for left in run._contents():
            left.unlink()
        write_json(run.root / "manifest.json", new_manifest(recipe.name, recipe.seed, _now()))
        run.set_status("running")
        # Written last: with it, the run has begun.
        run._write_recipe(recipe)
        return run

    @classmethod
    def resume(cls, root: Path, recipe: Recipe) -> Self:
        """Go on with a run, under the recipe that it was started with, and lock it.

        Trackers and topology may change on the way: they have no part in what comes out.

        Raises:
            InputError: there is no run at `root`, its recipe differs, or another process is
                using it.
        """
        run = cls(root)
        if not has_run(run.root):
            raise InputError("--resume", str(root), "the directory of a run that was started")
        moved = moved_settings(run.recipe(), recipe)
        run._lock = acquire(run.root)
        manifest = run.manifest()
        manifest["resumed"].append(
            {"time": _now(), "code": code_version(), "moved": moved, "ray_job": ray_job()}
        )
        write_json(run.root / "manifest.json", manifest)
        if moved:
            run._write_recipe(recipe)
        run.set_status("running")
        return run

    @property
    def recipe_path(self) -> Path:
        """The recipe as resolved."""
        return self.root / "recipe.yaml"

    @property
    def metrics_path(self) -> Path:
        """Numbers by step, as `rayward.cluster.trackers.metrics` writes them."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard_dir(self) -> Path:
        """TensorBoard events."""
        return self.root / "tensorboard"

    @property
    def tracking_path(self) -> Path:
        """Which runs of experiment trackers are this one, as `rayward.cluster.trackers.tracking` writes it."""
        return self.root / "tracking.json"

    @property
    def checkpoints_dir(self) -> Path:
        """What a running stage resumes from."""
        return self.root / "checkpoints"

    @property
    def summary_path(self) -> Path:
        """The run's results in short."""
        return self.root / "summary.json"

    @property
    def report_path(self) -> Path:
        """The report for people."""
        return self.root / "report.html"

    @property
    def promoted_path(self) -> Path:
        """Which policy passed every gate; absent until one has."""
        return self.root / "promoted.json"

    def gate_path(self, policy: str) -> Path:
        """How a policy fared at its gates."""
        return self.root / "gates" / f"{policy}.json"

    def samples_path(self, stage: str) -> Path:
        """Answers on held-out prompts after a stage."""
        return self.root / "samples" / f"{stage}.parquet"

    def step_samples_path(self, stage: str, step: int) -> Path:
        """Answers that a step of a stage learned from."""
        return self.root / "samples" / stage / f"step-{step:06d}.parquet"

    def model_dir(self, stage: str) -> Path:
        """The model that a stage made."""
        return self.root / "models" / stage

    def output_dir(self, stage: str) -> Path:
        """What a stage made beside a model."""
        return self.root / "outputs" / stage

    def stage_path(self, stage: str) -> Path:
        """The file that says that a stage is done."""
        return self.root / "stages" / f"{stage}.json"

    def recipe(self) -> Recipe:
        """The recipe that the run was started with.

        Raises:
            InputError: the file is missing or no recipe.
        """
        return load_recipe(self.recipe_path)

    def manifest(self) -> dict[str, Any]:
        """Where the run comes from."""
        return _read_json(self.root / "manifest.json")

    def status(self) -> RunStatus:
        """How the run stands."""
        return RunStatus.model_validate_json((self.root / "status.json").read_bytes())

    def set_status(
        self, state: RunState, stage: str | None = None, error: str | None = None
    ) -> None:
        """Write how the run stands; line breaks in `error` become spaces."""
        line = None if error is None else " ".join(error.split())
        status = RunStatus(state=state, stage=stage, updated=datetime.now(UTC), error=line)
        write_bytes(str(self.root / "status.json"), status.model_dump_json(indent=1).encode())

    def record_data(self, digests: Mapping[str, str]) -> None:
        """Put the digests of data files, by file, into the manifest.

        Raises:
            InputError: the run was started with other data.
        """
        manifest = self.manifest()
        started: dict[str, str] = manifest["data"]
        if started and started != dict(digests):
            names = sorted({*started, *digests})
            name = next(name for name in names if started.get(name) != digests.get(name))
            raise InputError("data", name, "the data that the run was started with; it has changed")
        manifest["data"] = dict(digests)
        write_json(self.root / "manifest.json", manifest)

    def record_model(
        self, stage: str, parents: Mapping[str, str], artifact: Artifact | None = None
    ) -> None:
        """Put the digest of a stage's model, and the models it came from, into the manifest.

        Args:
            stage: the stage, whose model is complete.
            parents: by role (such as "start" or "safety") the model directory or hub id.
            artifact: what else it came from.
        """
        model = self.model_dir(stage)
        manifest = self.manifest()
        manifest["lineage"][stage] = {
            "artifact": artifact and artifact.name,
            "model": model.relative_to(self.root).as_posix(),
            "digest": directory_digest(model),
            "parents": dict(parents),
        }
        write_json(self.root / "manifest.json", manifest)

    def complete_stage(
        self, name: str, result: Mapping[str, Any], artifact: Artifact | None = None
    ) -> None:
        """Mark a stage as done. It is the last thing that a stage writes.

        Args:
            name: of the stage.
            result: what came out.
            artifact: what went in; None where no other run may take the result over.

        Raises:
            ValueError: the result holds a number that is not finite.
        """
        document = {
            "stage": name,
            "artifact": artifact and artifact.name,
            "code": artifact and source_digest(),
            "completed": _now(),
            "inputs": artifact and artifact.inputs,
            "result": dict(result),
        }
        write_json(self.stage_path(name), document)

    def stage_result(self, name: str) -> dict[str, Any] | None:
        """What came out of a stage, or None if it is not done."""
        document = self.stage_document(name)
        return None if document is None else document["result"]

    def stage_document(self, name: str) -> dict[str, Any] | None:
        """What `complete_stage` wrote of a stage, or None if it is not done."""
        path = self.stage_path(name)
        return _read_json(path) if path.is_file() else None

    def close(self) -> None:
        """Let other processes write here. The end of the process does it too."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _refuse_contents(self) -> None:
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise InputError("--out", str(self.root), "a directory; it is a file")
        found = self._contents()
        has_begun = not all(_BEGINNING.fullmatch(path.name) for path in found)
        if found and (has_begun or not (self.root / LOCK).is_file()):
            self.close()
            raise InputError(
                "--out", str(self.root), "an empty directory; choose another or --resume"
            )

    def _contents(self) -> list[Path]:
        return [path for path in self.root.iterdir() if path.name != LOCK]

    def _write_recipe(self, recipe: Recipe) -> None:
        document = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
        write_bytes(str(self.recipe_path), document.encode())


def has_run(root: Path) -> bool:
    """Whether a run was started in a directory."""
    return (root / "recipe.yaml").is_file() and (root / "manifest.json").is_file()


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; numbers that are not finite raise ValueError."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(str(path.absolute()), (text + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
