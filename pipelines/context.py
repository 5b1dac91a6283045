"""What the stages of a run share."""

import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from actors.models import save_model
from cluster.atomic import new_directory
from cluster.config.recipe import Recipe, StageName
from cluster.errors import RunStopped
from cluster.metrics import MetricsWriter
from cluster.run_directory import RunDirectory
from pipelines.model_making import make_llama, make_tokenizer
from pipelines.run_data import RunData


@dataclass(frozen=True)
class RunContext:
    """One run: its recipe, data and directory."""

    recipe: Recipe
    run: RunDirectory
    data: RunData
    metrics: MetricsWriter
    stop: threading.Event
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def log(self, step: int, stage: StageName, values: Mapping[str, float]) -> None:
        """Write one step's numbers; stages may run side by side."""
        with self._lock:
            self.metrics.log(step, stage, values)

    def begin(self, stage: StageName) -> Path:
        """Clear away what an earlier session left of a stage that it did not complete.

        Returns:
            The stage's model directory, which does not exist.
        """
        output = self.run.model_dir(stage)
        with self._lock:
            self.metrics.truncate(stage, after_step=0)
            shutil.rmtree(output, ignore_errors=True)
        return output

    def record_model(self, stage: StageName, parents: Mapping[str, str]) -> None:
        """Put a stage's model and its parents into the manifest."""
        with self._lock:
            self.run.record_model(stage, parents)

    def check_stop(self) -> None:
        """Give way to a request to stop, between two pieces of work that can be redone.

        Raises:
            RunStopped: the run was asked to stop.
        """
        if self.stop.is_set():
            raise RunStopped("stopped on request")

    @property
    def storage(self) -> Path:
        """Where Ray Train keeps its records of this run."""
        return self.run.root / "ray-train"

    def start_model(self) -> str:
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

    def sft_model(self) -> str:
        """What SFT made, or the start where the recipe has no SFT."""
        if "sft" in self.recipe.stages:
            return str(self.run.model_dir("sft"))
        return self.start_model()
