"""Experiment trackers: whoever else wants a run's numbers, beside metrics.jsonl and TensorBoard.

Every stage counts its steps from 1, and two stages may run side by side, so a tracker with one
list of names gets STAGE/NAME, such as ppo/critic/score/mean, by the step of that stage.

metrics.jsonl is the truth, and a tracker a copy. One that fails does not stop the run: its lines
wait and are offered again, and the person is told when that begins, when it ends, and how many
lines were never taken. A tracker cannot forget either. Where a resumed run repeats steps that came
after its checkpoint, it holds both; they are the same numbers, and the later ones count.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import InputError, RunStopped
from rayward.cluster.progress import announce
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.interface import EndState, MetricRow, Tracker, TrackerError
from rayward.cluster.trackers.ray_gauges import RayGauges

# A tracker that does not answer costs seconds each time it is asked.
_ASK_AGAIN_AFTER_S = 60.0


class Trackers:
    """All trackers of a run, none of which can stop it."""

    def __init__(self) -> None:
        self._deliveries: list[_Delivery] = []
        self._headline: dict[str, float] = {}

    def add(self, tracker: Tracker) -> None:
        """Give a tracker everything from here on."""
        self._deliveries.append(_Delivery(tracker))

    def log(self, row: MetricRow) -> None:
        """Give every tracker the numbers of one step."""
        for delivery in self._deliveries:
            delivery.log(row)

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Keep the numbers of summary.json for the end, such as summary/stages/ppo/seconds."""
        self._headline = numbers_of(summary, "summary")

    def finish(self, state: EndState) -> None:
        """Tell every tracker how the run ended."""
        for delivery in self._deliveries:
            delivery.finish(state, self._headline if state == "succeeded" else {})


@contextmanager
def open_trackers(recipe: Recipe, run: RunDirectory) -> Iterator[Trackers]:
    """The trackers that the recipe asks for, and Ray's gauges, for the time of the block.

    A run that goes on is the same run to them. How the block ends is how the run ended. A process
    that is killed tells nobody: until it is resumed, MLflow shows the run as running, and Weights &
    Biases as crashed. What waited for a tracker then is in metrics.jsonl only.

    Raises:
        InputError: a tracker's library is not installed, or the tracker does not answer.
    """
    settings = recipe.tracking
    for library in ("mlflow", "wandb"):
        if getattr(settings, library) is not None:
            _require_library(library)
    trackers = Trackers()
    state: EndState = "failed"
    try:
        trackers.add(RayGauges(recipe.name))
        # The libraries take a second to import, so only those pay who use them.
        if settings.mlflow is not None:
            from rayward.cluster.trackers.mlflow import MLflowTracker

            trackers.add(MLflowTracker(settings.mlflow, recipe, run))
        if settings.wandb is not None:
            from rayward.cluster.trackers.wandb import WandbTracker

            trackers.add(WandbTracker(settings.wandb, recipe, run))
        yield trackers
        state = "succeeded"
    except (RunStopped, KeyboardInterrupt):
        state = "stopped"
        raise
    finally:
        trackers.finish(state)


def numbers_of(document: object, name: str) -> dict[str, float]:
    """The numbers in a JSON document, named by their way from `name`, with slashes.

    Of lists, only those of objects with a `name` count; that name is part of the way.
    """
    if isinstance(document, int | float) and not isinstance(document, bool):
        return {name: float(document)}
    parts: list[tuple[object, object]] = []
    if isinstance(document, Mapping):
        parts = list(document.items())
    elif isinstance(document, list):
        parts = [(one["name"], one) for one in document if isinstance(one, dict) and "name" in one]
    found: dict[str, float] = {}
    for key, value in parts:
        found |= numbers_of(value, f"{name}/{key}")
    return found


class _Delivery:
    """Hands one tracker its rows in order, and keeps those that it did not take."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._waiting: deque[MetricRow] = deque()
        self._failed = False
        self._ask_at = 0.0  # by the monotonic clock, in seconds

    def log(self, row: MetricRow) -> None:
        self._waiting.append(row)
        if time.monotonic() >= self._ask_at:
            self._offer()

    def finish(self, state: EndState, headline: Mapping[str, float]) -> None:
        name = self._tracker.name
        self._offer()
        try:
            self._tracker.finish(state, headline)
        except TrackerError as error:
            announce(f"{name} does not know how the run ended ({state}): {error}")
        if self._waiting:
            lines = len(self._waiting)
            announce(f"{name} did not take {lines} lines of metrics; metrics.jsonl has them")

    def _offer(self) -> None:
        name = self._tracker.name
        try:
            while self._waiting:
                self._tracker.log(self._waiting[0])
                self._waiting.popleft()
        except TrackerError as error:
            self._ask_at = time.monotonic() + _ASK_AGAIN_AFTER_S
            if not self._failed:
                announce(f"{name} takes no metrics, which wait: {error}")
            self._failed = True
            return
        if self._failed:
            announce(f"{name} takes metrics again, and has those that waited")
        self._failed = False


def _require_library(name: str) -> None:
    # A folder of that name, such as W&B leaves where it runs, is no library and has no origin.
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f"tracking.{name}", None, f"the extra: pip install 'rayward[{name}]'")
