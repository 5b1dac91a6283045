"""A recipe, from its data to its report: whatever is not there yet is made, stage by stage.

data -> for each stage of the plan: { taken over | run } -> policies measured -> gates -> report
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import GateFailed, RunStopped
from rayward.cluster.progress import announce
from rayward.cluster.ray_runtime.lost_nodes import NamingLostNodes
from rayward.cluster.ray_runtime.session import ray_session
from rayward.cluster.records.plan import PlannedStage, evaluation_of, make_plan
from rayward.cluster.records.summary import write_summary
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.stages import makes_reward_model
from rayward.cluster.trackers.metrics import MetricsWriter
from rayward.cluster.trackers.ray_gauges import metrics_address
from rayward.cluster.trackers.tracking import Trackers, open_trackers
from rayward.pipelines.evaluation.measure import due, is_done, measure
from rayward.pipelines.report.report import write_report
from rayward.pipelines.run.capacity import require_room, required_cpus
from rayward.pipelines.run.context import RunContext, open_context
from rayward.pipelines.run.data import load_data
from rayward.pipelines.runner import preflight
from rayward.pipelines.runner.promotion import check_gates, promote
from rayward.pipelines.runner.reuse import adopt
from rayward.pipelines.stage import stage_of


def run_recipe(recipe: Recipe, out: Path, resume: bool, address: str | None) -> dict[str, Any]:
    """Run a recipe from its data to its report, or go on with a run that was cut short.

    Args:
        recipe: what to do.
        out: the run directory.
        resume: go on with the run in `out`; finished stages are not run again.
        address: of a Ray cluster, or None for an embedded one.

    Returns:
        The summary, as summary.json holds it.

    Raises:
        InputError: the recipe, its data or its models cannot be used.
        GateFailed: a policy does not hold what the recipe requires; it is in the report.
        NodeLost: a machine of the cluster is gone; `resume` goes on on those that are left.
        RunStopped: the run was asked to stop; `resume` goes on with it.
    """
    began = time.perf_counter()
    with (RunDirectory.resume if resume else RunDirectory.create)(out, recipe) as run:
        try:
            with open_trackers(recipe, run) as trackers:
                with stop_requests() as stop:
                    timing = _run_stages(recipe, run, trackers, address, stop)
                timing["total"] = time.perf_counter() - began
                summary = write_summary(run, timing)
                trackers.summarize(summary)
                run.set_status("succeeded")
                write_report(run)
        except GateFailed as failed:
            run.set_status("failed", error=str(failed))
            # What failed, and in which cells, is what people will want to look at.
            write_summary(run, {"total": time.perf_counter() - began})
            announce(f"report: {write_report(run)}")
            raise
        except (RunStopped, KeyboardInterrupt) as stopped:
            run.set_status("stopped", error=str(stopped) or "interrupted")
            raise
        except BaseException as error:
            run.set_status("failed", error=f"{type(error).__name__}: {error}")
            raise
        announce(f"report: {run.report_path}")
    return summary


def _run_stages(
    recipe: Recipe,
    run: RunDirectory,
    trackers: Trackers,
    address: str | None,
    stop: threading.Event,
) -> dict[str, float]:
    timing: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        run.set_status("running", stage=name)
        yield
        timing[name] = time.perf_counter() - start

    with timed("data"):
        data = load_data(recipe, run)
    with ExitStack() as resources:
        metrics = resources.enter_context(
            MetricsWriter(run.metrics_path, run.tensorboard_dir, trackers)
        )
        context = resources.enter_context(open_context(run, data, metrics, stop))
        preflight.check(context)
        # What an earlier session promoted may be about to change.
        run.promoted_path.unlink(missing_ok=True)
        todo = [stage for stage in make_plan(recipe) if not _is_there(context, stage)]
        with timed("ray"):
            resources.enter_context(ray_session(address, required_cpus(recipe)))
            # Before Ray goes, whatever still runs on it.
            resources.callback(context.sessions.close)
            resources.enter_context(NamingLostNodes())
        announce(f"metrics for Prometheus: {metrics_address() or 'out of reach from here'}")
        if address is None:
            require_room(recipe)
        _measure_due(context, timed)
        for together in _side_by_side(todo):
            name = " + ".join(stage.id for stage in together)
            with timed(name):
                run_together(context, together)
            _measure_due(context, timed)
        check_gates(context)
        promote(context)
    return timing


def _is_there(context: RunContext, stage: PlannedStage) -> bool:
    """Whether a stage is done, here or in a run beside this one; measuring comes by itself."""
    if stage_of(stage.name).makes == "measurements" or is_done(context, stage.id):
        return True
    return adopt(context, stage.id)


def _side_by_side(stages: Sequence[PlannedStage]) -> list[list[PlannedStage]]:
    """The stages in order; neighbours that train reward models from one policy are together."""

    def key(stage: PlannedStage) -> tuple[str, ...]:
        return ("reward models", stage.policy) if makes_reward_model(stage.name) else (stage.id,)

    return [list(group) for _, group in groupby(stages, key)]


def run_together(context: RunContext, stages: Sequence[PlannedStage]) -> None:
    """Run stages side by side, each in a thread; where one fails, the others give way."""
    context.check_stop()
    if len(stages) == 1:
        stage_of(stages[0].name).run(context, stages[0])
        return
    # Once, before two threads would do it at the same time.
    context.sessions.close()
    context.policy(stages[0].policy)
    with ThreadPoolExecutor(max_workers=len(stages)) as pool:
        runs = [pool.submit(stage_of(one.name).run, context, one) for one in stages]
        done, _ = wait(runs, return_when=FIRST_EXCEPTION)
        if any(one.exception() for one in done):
            context.stop.set()  # the others give way at their next step
        for one in sorted(done, key=runs.index):
            one.result()


def _measure_due(context: RunContext, timed: Callable[[str], AbstractContextManager[None]]) -> None:
    # Of a policy that an earlier session measured, the gate may still be open.
    check_gates(context)
    for policy in due(context):
        if not adopt(context, evaluation_of(policy)):
            context.check_stop()
            with timed(evaluation_of(policy)):
                measure(context, policy)
        check_gates(context)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into a request to stop at the next step boundary.

    The second one interrupts at once. Only a main thread can listen; elsewhere nothing changes.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        announce("stopping at the next step boundary; once more to stop at once")

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
