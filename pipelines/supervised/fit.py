"""The driver's side of the supervised stages: one fit on Ray Train, with progress.

driver thread: trainer.fit() -> Ray Train controller -> ranks (supervised_loop.run_rank)
caller:        on_progress   <-      queue actor     <- rank 0, after each step
"""

import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from rayward.cluster.config.supervised import SupervisedSettings
from rayward.cluster.errors import InputError
from rayward.pipelines.supervised.loop import (
    Job,
    LoopResult,
    RowT,
    StepReport,
    SupervisedTask,
    run_rank,
)

_POLL_SECONDS = 0.2
_END_SECONDS = 5.0
# Ray Train's controller looks at its workers every two seconds by default, also at the end, and
# keeps a process that watches for preempted nodes, which a fit of minutes does not outlive.
_RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


@dataclass(frozen=True)
class FitResult:
    """A finished fit."""

    output: Path
    """The trained model: a transformers directory."""
    steps: int
    loss: float
    """Mean loss of the last step's batch, in nats."""
    rows: int
    """Rows learned, each once per epoch."""
    rows_left_out: int
    """Rows longer than `max_tokens`."""
    tokens: int
    """Unpadded tokens seen in all steps."""
    seconds: float
    """Spent in optimizer steps, without start-up, measuring and saving."""
    held_out: tuple[int, ...]
    """Indices of the held-out rows that were measured; the others are longer than `max_tokens`."""
    held_out_outputs: npt.NDArray[np.float32]
    """The task's outputs for them, [held_out, K]."""


def fit(
    task: SupervisedTask[RowT],
    settings: SupervisedSettings,
    output: Path,
    seed: int,
    storage: Path,
    on_progress: Callable[[StepReport], None],
) -> FitResult:
    """Train a model on Ray, which the caller has joined, and write it to `output`.

    Several fits may run at once from threads of one driver.

    Args:
        output: the trained model's directory, on storage that all nodes share; must not exist.
        seed: the order of the rows; the same seed gives the same weights, bit for bit on CPU.
        storage: where Ray Train keeps its own records.
        on_progress: called in the caller's thread after each step. If it raises, the fit ends.

    Raises:
        InputError: `output` exists, or what the ranks were given is wrong.
        Exception: whatever a rank raised, as it was raised there.
    """
    if output.exists():
        raise InputError("output", str(output), "a path where nothing exists yet")
    output.parent.mkdir(parents=True, exist_ok=True)
    for name, value in _RAY_TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    reports = Queue(actor_options={"num_cpus": 0})
    job = Job(task, settings, output.absolute(), seed, reports)
    # mypy reads the signatures of Ray Train V1; what runs is V2.
    trainer = TorchTrainer(
        _run_worker,  # type: ignore[arg-type]
        train_loop_config={"job": ray.put(job)},
        scaling_config=_scaling(settings),
        run_config=ray.train.RunConfig(
            name=f"{output.name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(storage.absolute()),
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    running = _Running(trainer, name=f"fit {output.name}")
    tokens, loss = 0, float("nan")
    try:
        while running.alive or reports.size():
            try:
                report = StepReport(**reports.get(timeout=_POLL_SECONDS))
            except Empty:
                continue
            tokens, loss = tokens + report.tokens, report.loss
            on_progress(report)
    finally:
        reports.shutdown()  # ranks that still train fail at their next report, and end
        running.wait(_END_SECONDS)
    result = running.result()
    return FitResult(
        output=output,
        steps=result.steps,
        loss=loss,
        rows=result.rows,
        rows_left_out=result.rows_left_out,
        tokens=tokens,
        seconds=result.seconds,
        held_out=result.held_out,
        held_out_outputs=result.held_out_outputs,
    )


def _run_worker(config: dict[str, Any]) -> dict[str, Any]:
    context = ray.train.get_context()
    job = ray.get(config["job"])
    result = run_rank(job, rank=context.get_world_rank(), ranks=context.get_world_size())
    # A dict: the controller, which passes it on, would need seconds to import `LoopResult`.
    return vars(result)


def _scaling(settings: SupervisedSettings) -> ray.train.ScalingConfig:
    resources = settings.resources
    per_worker = {"CPU": resources.cpus, **resources.custom}
    if resources.gpus:
        per_worker["GPU"] = resources.gpus
    return ray.train.ScalingConfig(  # type: ignore[call-arg]  # V2, as above
        num_workers=settings.deepspeed.ranks,
        use_gpu=resources.gpus > 0,
        resources_per_worker=per_worker,
        label_selector=resources.labels or None,
    )


class _Running:
    """A `trainer.fit()` in a thread of its own.

    In the main thread Ray Train would take over the handling of Ctrl-C. The thread is a daemon,
    so that a driver that gives up does not wait for it for ever.
    """

    def __init__(self, trainer: TorchTrainer, name: str) -> None:
        self._trainer = trainer
        self._result: LoopResult | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait for the end, but not for long.

        A thread that is still at work within Ray when the process ends can take it along with a
        segmentation fault.
        """
        self._thread.join(seconds)

    def result(self) -> LoopResult:
        self._thread.join()
        if self._error is not None:
            raise _cause(self._error) from self._error
        assert self._result is not None
        return self._result

    def _fit(self) -> None:
        try:
            returned = self._trainer.fit().return_value  # type: ignore[attr-defined]  # V2
            self._result = LoopResult(**returned)
        except BaseException as error:  # noqa: BLE001  raised again by `result`
            self._error = error


def _cause(error: BaseException) -> BaseException:
    """What went wrong, without Ray Train's wrapping."""
    if isinstance(error, ray.train.ControllerError):
        return error.controller_failure
    if isinstance(error, ray.train.WorkerGroupError):
        # When one rank fails, the others may fail for the want of it.
        failures = [
            getattr(failure, "_base_exc", failure)
            for _, failure in sorted(error.worker_failures.items())
        ]
        return next((f for f in failures if isinstance(f, InputError)), failures[0])
    return error
