"""The recipe: SFT, two reward models, PPO, measured and reported.

data -> sft -> { reward_safety, reward_helpfulness } at the same time -> ppo -> report
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from actors.roles import role_requests
from cluster.config.recipe import Recipe
from cluster.config.supervised import SupervisedSettings
from cluster.errors import InputError, RunStopped
from cluster.metrics import MetricsWriter
from cluster.placement import RoleRequest, missing_resources, total_cpus
from cluster.progress import announce
from cluster.run_directory import RunDirectory
from cluster.session import ray_session
from cluster.trackers.ray_gauges import metrics_address
from cluster.tracking import Trackers, open_trackers
from cluster.types import AXES
from pipelines import preflight
from pipelines.context import RunContext
from pipelines.report import write_report
from pipelines.run_data import load_data
from pipelines.stage_ppo import measure_sft, run_ppo
from pipelines.stage_supervised import run_rewards, run_sft
from pipelines.summary import write_summary


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
    todo = [stage for stage in recipe.stages if run.stage_result(stage) is None]
    axes = [axis for axis in AXES if f"reward_{axis}" in todo]
    with ExitStack() as resources:
        metrics = resources.enter_context(
            MetricsWriter(run.metrics_path, run.tensorboard_dir, trackers)
        )
        context = RunContext(recipe, run, data, metrics, stop)
        preflight.check(context)
        with timed("ray"):
            resources.enter_context(ray_session(address, required_cpus(recipe), run.root))
        announce(f"metrics for Prometheus: {metrics_address() or 'out of reach from here'}")
        if address is None:
            _require_room(recipe)
        if "sft" in todo:
            with timed("sft"):
                run_sft(context)
        if axes:
            with timed("reward_models"):
                run_rewards(context, axes)
        if "ppo" in todo:
            with timed("ppo"):
                run_ppo(context)
        sft = run.stage_result("sft")
        if sft is not None and sft["evaluation"] is None and "ppo" not in recipe.stages:
            with timed("evaluation"):
                measure_sft(context)
    return timing


def _require_room(recipe: Recipe) -> None:
    """An embedded Ray never grows, so what it lacks now it will lack for ever.

    Raises:
        InputError: the stages ask for more than there is.
    """
    stages: dict[str, list[RoleRequest]] = {}
    for stage in ("sft", "reward_safety", "reward_helpfulness"):
        settings: SupervisedSettings = getattr(recipe, stage)
        stages[stage] = [RoleRequest(stage, settings.deepspeed.ranks, settings.resources)]
    stages["ppo"] = role_requests(recipe.ppo)
    for stage in recipe.stages:
        missing = missing_resources(stages[stage], ray.cluster_resources())
        if missing:
            raise InputError(f"{stage}: resources", missing, "no more than this machine has")


def required_cpus(recipe: Recipe) -> float:
    """Logical CPUs that the recipe's widest moment asks for."""

    def fit(settings: SupervisedSettings) -> float:
        return settings.deepspeed.ranks * settings.resources.cpus

    judge = recipe.evaluation.judge
    return max(
        fit(recipe.sft),
        fit(recipe.reward_safety) + fit(recipe.reward_helpfulness),
        total_cpus(role_requests(recipe.ppo)) + (judge.resources.cpus if judge else 0),
    )


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
