"""What one rank does in a supervised stage: encode, train with DeepSpeed, measure, save.

    rows -> shuffled batches -> this rank's microbatches -> engine -> one optimizer step

The losses do not depend on the number of ranks, the ZeRO stage or the microbatch plan: every
microbatch contributes its share of the mean over the whole batch of the step.
"""

import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from ray.util.queue import Queue
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayward.actors.models.loading import save_model
from rayward.actors.models.microbatches import microbatches_of_rank
from rayward.cluster.config.roles import Precision
from rayward.cluster.config.supervised import ScheduleSettings, SupervisedSettings
from rayward.cluster.errors import InputError


class Row(Protocol):
    """An encoded row."""

    @property
    def longest(self) -> int:
        """Tokens in the row's longest sequence."""

    @property
    def padded(self) -> int:
        """Tokens of all its sequences, each padded to the longest."""

    @property
    def tokens(self) -> int:
        """Tokens of all its sequences."""


RowT = TypeVar("RowT", bound=Row)


class SupervisedTask(ABC, Generic[RowT]):
    """What differs between SFT and reward training. Instances are pickled to the ranks."""

    measures: ClassVar[tuple[str, ...]]
    """Names of what `loss` reports beside the loss."""

    @property
    @abstractmethod
    def section(self) -> str:
        """Where its settings are in a recipe."""

    @abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that is saved beside the model."""

    @abstractmethod
    def load_model(self, precision: Precision) -> PreTrainedModel:
        """The model to train, of which the weights that ask for gradients are trained."""

    @abstractmethod
    def rows(self, tokenizer: PreTrainedTokenizerBase) -> list[RowT]:
        """What is learned."""

    @abstractmethod
    def held_out_rows(self, tokenizer: PreTrainedTokenizerBase) -> list[RowT]:
        """What the trained model is measured on; may be empty."""

    @abstractmethod
    def totals(self, rows: Sequence[RowT]) -> tuple[float, ...]:
        """What the sums over a whole batch are divided by, tokens or pairs for example."""

    @abstractmethod
    def loss(
        self, model: PreTrainedModel, rows: Sequence[RowT], totals: tuple[float, ...]
    ) -> Tensor:
        """A microbatch's share of the batch's mean loss, and of each measure.

        Returns:
            float32 [1 + measures]; only the first carries a gradient.
        """

    @abstractmethod
    def outputs(self, model: PreTrainedModel, rows: Sequence[RowT]) -> Tensor:
        """What the trained model says of held-out rows, float32 [rows, K]."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step."""

    step: int
    """From 1."""
    steps: int
    loss: float
    """Mean over the whole batch, in nats."""
    learning_rate: float
    gradient_norm: float
    """Over all weights, before clipping."""
    tokens: int
    """Unpadded tokens in the batch."""
    tokens_per_second: float
    measures: dict[str, float]
    """What the task measures beside the loss, over the whole batch."""


@dataclass(frozen=True)
class LoopResult:
    """What a rank hands back; the same on every rank."""

    steps: int
    rows: int
    rows_left_out: int
    held_out: tuple[int, ...]
    """Indices of the held-out rows that were measured; the others are too long."""
    held_out_outputs: npt.NDArray[np.float32]
    """[held_out, K]."""
    seconds: float
    """Spent in optimizer steps."""


@dataclass(frozen=True)
class Job(Generic[RowT]):
    """Everything that a rank needs to know."""

    task: SupervisedTask[RowT]
    settings: SupervisedSettings
    output: Path
    seed: int
    reports: Queue
    """Takes each `StepReport` as a dict, so that its actor need not import this module."""


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleSettings) -> float:
    """Linear warm-up, then cosine decay to a share of the peak (Llama 2, section 3.2.2).

    Args:
        step: 1 to `steps`. The warm-up's last step has the peak, the last of all the final share.
    """
    warmup = max(schedule.warmup_min_steps, round(schedule.warmup_share * steps))
    warmup = min(warmup, steps)
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / (steps - warmup)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return peak * (schedule.final_share + (1 - schedule.final_share) * cosine)


def batches(rows: int, settings: SupervisedSettings, seed: int) -> list[list[int]]:
    """Row indices per optimizer step: every epoch in an order of its own, from the seed."""
    planned: list[list[int]] = []
    for epoch in range(settings.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(rows).tolist()
        planned += [
            order[start : start + settings.batch_size]
            for start in range(0, rows, settings.batch_size)
        ]
    return planned[: settings.max_steps]


def run_rank(job: Job[RowT], rank: int, ranks: int) -> LoopResult:
    """Train as one of `ranks` processes, which have joined one torch process group.

    Raises:
        InputError: the model cannot be loaded, or no row is short enough.
    """
    torch.set_num_threads(job.settings.resources.threads)
    torch.manual_seed(job.seed)
    task, settings = job.task, job.settings
    tokenizer = task.load_tokenizer()
    encoded = task.rows(tokenizer)
    rows = [row for row in encoded if row.longest <= settings.max_tokens]
    if not rows:
        raise InputError(
            "data", f"{len(encoded)} rows", f"a row of at most {settings.max_tokens} tokens"
        )
    trainer = _Trainer(task, settings, rank, ranks)
    plan = batches(len(rows), settings, job.seed)
    started = time.monotonic()
    for step, batch in enumerate(plan, start=1):
        report = trainer.step([rows[index] for index in batch], step, len(plan))
        if rank == 0:
            job.reports.put(asdict(report))
    seconds = time.monotonic() - started
    held_out = task.held_out_rows(tokenizer)
    measured = [i for i, row in enumerate(held_out) if row.longest <= settings.max_tokens]
    outputs = trainer.outputs([held_out[index] for index in measured])
    trainer.save(tokenizer, job.output)
    return LoopResult(
        steps=len(plan),
        rows=len(rows),
        rows_left_out=len(encoded) - len(rows),
        held_out=tuple(measured),
        held_out_outputs=outputs,
        seconds=seconds,
    )


class _TaskModule(nn.Module, Generic[RowT]):
    """Task and model as the one module whose forward pass DeepSpeed watches."""

    def __init__(self, task: SupervisedTask[RowT], model: PreTrainedModel) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, rows: Sequence[RowT], totals: tuple[float, ...] | None) -> Tensor:
        if totals is None:
            return self.task.outputs(self.model, rows)
        return self.task.loss(self.model, rows, totals)


class _Trainer(Generic[RowT]):
    """A DeepSpeed engine around a task's model, on one rank."""

    def __init__(
        self, task: SupervisedTask[RowT], settings: SupervisedSettings, rank: int, ranks: int
    ) -> None:
        # DeepSpeed: only ranks pay for this import.
        from rayward.actors.learning.zero import make_engine, recompute_activations

        self._task = task
        self._settings = settings
        self._rank = rank
        self._ranks = ranks
        self._model = task.load_model(settings.precision)
        if settings.gradient_checkpointing:
            recompute_activations(self._model, f"{task.section}.gradient_checkpointing")
        module = _TaskModule(task, self._model)
        self._engine = make_engine(
            module, settings.optimizer, settings.deepspeed, settings.precision
        )

    def step(self, batch: Sequence[RowT], step: int, steps: int) -> StepReport:
        """Learn from one batch, of which this rank takes its share."""
        from rayward.actors.learning.zero import gradient_norm

        started = time.monotonic()
        rate = learning_rate(
            step, steps, self._settings.optimizer.learning_rate, self._settings.schedule
        )
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        totals = self._task.totals(batch)
        sums = torch.zeros(1 + len(self._task.measures), device=self._engine.device)
        for rows, weight in self._microbatches(batch):
            shares = self._engine(rows, totals) * weight
            # DeepSpeed averages over the ranks; the shares add up.
            self._engine.backward(shares[0] * self._ranks, scale_wrt_gas=False)
            sums += shares.detach()
        self._engine.step()
        dist.all_reduce(sums)
        loss, *measures = sums.tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is {loss}")
        tokens = sum(row.tokens for row in batch)
        return StepReport(
            step=step,
            steps=steps,
            loss=loss,
            learning_rate=rate,
            gradient_norm=gradient_norm(self._engine),
            tokens=tokens,
            tokens_per_second=tokens / (time.monotonic() - started),
            measures=dict(zip(self._task.measures, measures, strict=True)),
        )

    def outputs(self, rows: Sequence[RowT]) -> npt.NDArray[np.float32]:
        """The task's outputs for all rows, on every rank, float32 [rows, K]."""
        if not rows:
            return np.zeros((0, 0), dtype=np.float32)
        positions = {id(row): position for position, row in enumerate(rows)}
        mine: list[tuple[int, list[float]]] = []
        with torch.no_grad():
            for microbatch, weight in self._microbatches(rows):
                said = self._engine(microbatch, None).float().cpu().tolist()
                if weight:
                    pairs = zip(microbatch, said, strict=True)
                    mine += [(positions[id(row)], values) for row, values in pairs]
        everyone: list[list[tuple[int, list[float]]]] = [[] for _ in range(self._ranks)]
        dist.all_gather_object(everyone, mine)
        ordered = sorted(item for share in everyone for item in share)
        return np.array([values for _, values in ordered], dtype=np.float32)

    def save(self, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
        """Rank 0 writes an ordinary transformers directory, which appears whole or not at all."""
        from rayward.actors.learning.zero import full_weights

        weights = full_weights(self._model, keep=self._rank == 0)
        if self._rank == 0:
            partial = output.with_name(f".{output.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            save_model(self._model, tokenizer, partial, weights)
            partial.rename(output)
        dist.barrier()

    def _microbatches(self, batch: Sequence[RowT]) -> Iterator[tuple[list[RowT], float]]:
        plan = microbatches_of_rank(
            [row.padded for row in batch],
            self._settings.max_tokens_per_microbatch,
            self._rank,
            self._ranks,
        )
        return (([batch[index] for index in indices], weight) for indices, weight in plan)
