"""What the stages of a run share."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayward.actors.models.loading import save_model
from rayward.cluster.atomic import new_directory, write_bytes
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import RunStopped
from rayward.cluster.progress import Advance
from rayward.cluster.records.plan import PREVIOUS, START, PlannedStage, yardsticks
from rayward.cluster.runs.artifacts import Artifact
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import MetricsWriter
from rayward.cluster.types import AXES, Axis
from rayward.pipelines.run.data import RunData
from rayward.pipelines.run.inputs import name_artifacts
from rayward.pipelines.run.samplers import Sessions, benchmark_room, longest_conversation
from rayward.pipelines.run.start_model import make_llama, make_tokenizer

# The file that says which artifact a stage's output, or its checkpoints, are of.
_MARKER = "ARTIFACT"


@dataclass(frozen=True)
class RunContext:
    """One run: its recipe, data and directory."""

    recipe: Recipe
    run: RunDirectory
    data: RunData
    metrics: MetricsWriter
    stop: threading.Event
    artifacts: Mapping[str, Artifact]
    """What each stage goes by, by its id."""
    sessions: Sessions
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def log(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Write one step's numbers; stages may run side by side."""
        with self._lock:
            self.metrics.log(step, stage, values)

    def begin(self, stage: str) -> Path:
        """Clear away what an earlier session left of a stage that it did not complete.

        Returns:
            The stage's model directory, which does not exist.
        """
        model = self.run.model_dir(stage)
        with self._lock:
            # Whoever looks meanwhile must not take it for done.
            self.run.stage_path(stage).unlink(missing_ok=True)
            self.metrics.truncate(stage, after_step=0)
            shutil.rmtree(model, ignore_errors=True)
        return model

    def output(self, stage: str, make: Callable[[Path], None]) -> Path:
        """What a stage makes beside its model, made unless an earlier session did.

        Args:
            stage: the stage's id.
            make: fills the directory that it is given; a fault leaves nothing behind.
        """
        directory, name = self.run.output_dir(stage), self.artifacts[stage].name
        if not is_marked(directory, name):
            self.run.stage_path(stage).unlink(missing_ok=True)
            shutil.rmtree(directory, ignore_errors=True)
            for stale in directory.parent.glob(f".{directory.name}.*.tmp"):
                shutil.rmtree(stale)
            with new_directory(directory) as partial:
                make(partial)
                (partial / _MARKER).write_text(name, encoding="utf-8")
        return directory

    def claim_checkpoints(self, stage: str) -> None:
        """Clear away checkpoints that were written from other inputs, and what goes with them."""
        place, name = self.run.checkpoints_dir / stage, self.artifacts[stage].name
        if not is_marked(place, name):
            shutil.rmtree(place, ignore_errors=True)
            shutil.rmtree(self.run.root / "samples" / stage, ignore_errors=True)
            write_bytes(str((place / _MARKER).absolute()), name.encode())
        self.run.stage_path(stage).unlink(missing_ok=True)

    def record_model(self, stage: str, parents: Mapping[str, str]) -> None:
        """Put a stage's model and its parents into the manifest."""
        with self._lock:
            self.run.record_model(stage, parents, self.artifacts[stage])

    def complete(self, stage: str, result: Mapping[str, Any]) -> None:
        """Mark a stage as done: the last thing that it does."""
        with self._lock:
            self.run.complete_stage(stage, result, self.artifacts[stage])

    def check_stop(self) -> None:
        """Give way to a request to stop, between two pieces of work that can be redone.

        Raises:
            RunStopped: the run was asked to stop.
        """
        if self.stop.is_set():
            raise RunStopped("stopped on request")

    def watched(self, advance: Advance) -> Callable[[int], None]:
        """Shows work as it is done, and gives way to a request to stop."""

        def on_done(more: int) -> None:
            advance(more)
            self.check_stop()

        return on_done

    @property
    def storage(self) -> Path:
        """Where Ray Train keeps its records of this run."""
        return self.run.root / "ray-train"

    def policy(self, name: str) -> str:
        """Where a policy is, by its name in the plan: a path or a hub id."""
        if name == START:
            return self._start_model()
        if name == PREVIOUS:
            assert self.recipe.gates is not None
            assert self.recipe.gates.previous is not None
            return self.recipe.gates.previous
        return str(self.run.model_dir(name))

    def reward_models(self, stage: PlannedStage | None = None) -> dict[Axis, str]:
        """The reward models by axis: the recipe's own, else those of a stage's round.

        Args:
            stage: whose; None for those that measure every policy.
        """
        made = yardsticks(self.recipe) if stage is None else stage.reward_models
        paths = {axis: getattr(self.recipe.ppo, axis).path for axis in AXES}
        paths |= {axis: str(self.run.model_dir(made[axis])) for axis in made if not paths[axis]}
        return {axis: path for axis, path in paths.items() if path is not None}

    def _start_model(self) -> str:
        """The language model that the run starts from; made on the spot where the recipe says so.

        Raises:
            InputError: `model.path` is not a causal language model with a chat template.
        """
        recipe = self.recipe
        if recipe.model.path is not None:
            return recipe.model.path
        assert recipe.model.make is not None
        directory = self.run.model_dir("start")
        if not directory.exists():
            texts = [one.response for one in self.data.demonstrations]
            texts += [m.content for one in self.data.demonstrations for m in one.prompt.messages]
            tokenizer = make_tokenizer(texts, recipe.model.make.vocab_size)
            model = make_llama(tokenizer, recipe.model.make, recipe.seed)
            with new_directory(directory) as partial:
                save_model(model, tokenizer, partial)
        return str(directory)


def is_marked(directory: Path, name: str) -> bool:
    """Whether an output, or checkpoints, are there and of the artifact of this name."""
    marker = directory / _MARKER
    return marker.is_file() and marker.read_text(encoding="utf-8") == name


@contextmanager
def open_context(
    run: RunDirectory, data: RunData, metrics: MetricsWriter, stop: threading.Event
) -> Iterator[RunContext]:
    """The context of a run for the time of the block, at whose end no session is left open."""
    recipe = run.recipe()
    room = longest_conversation(recipe, data)
    artifacts = name_artifacts(recipe, data.digests, benchmark_room(recipe, data))
    with Sessions(recipe, room, run.root / "merged") as sessions:
        yield RunContext(recipe, run, data, metrics, stop, artifacts, sessions)
