import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.microbatches import microbatches_of_rank
from actors.models import load_causal_lm, load_tokenizer, weights_digest
from cluster.config.roles import DeepSpeedSettings, OptimizerSettings, Resources
from cluster.config.supervised import (
    SafetyRewardSettings,
    ScheduleSettings,
    SFTSettings,
    SupervisedSettings,
)
from cluster.errors import InputError
from cluster.types import Demonstration, Message, PreferencePair, Prompt
from pipelines.reward_training import RewardTrainingResult, train_reward_model
from pipelines.sft import SFTResult, SFTTask, train_sft
from pipelines.supervised_loop import (
    Job,
    StepReport,
    batches,
    learning_rate,
    run_rank,
)
from tests.tiny import write_tiny_llama


def prompt(number: int, content: str) -> Prompt:
    messages = (Message("user", content),)
    return Prompt(f"p{number}", messages, None, None, False, False, "test")


def demonstration(number: int) -> Demonstration:
    question = prompt(number, "word " * (number % 7 + 1))
    return Demonstration(question, "answer " * (number % 5 + 1))


TOO_LONG = Demonstration(prompt(99, "long"), "x" * 200)
DEMONSTRATIONS = [*(demonstration(number) for number in range(60)), TOO_LONG]
SEED = 7
SHARED = {"max_tokens": 100, "resources": Resources(cpus=0.5)}


def sft_settings(ranks: int, zero_stage: int) -> SFTSettings:
    return SFTSettings(
        batch_size=11,
        max_steps=5,
        max_tokens_per_microbatch=200,
        optimizer=OptimizerSettings(learning_rate=1e-3),
        deepspeed=DeepSpeedSettings(ranks=ranks, zero_stage=zero_stage),
        **SHARED,
    )


@pytest.mark.parametrize(("step", "expected"), [(30, 1e-5), (515, 5.5e-6), (1000, 1e-6)])
def test_schedule_by_hand(step: int, expected: float) -> None:
    assert learning_rate(step, 1000, 1e-5, ScheduleSettings()) == pytest.approx(expected, rel=1e-9)


def test_warm_up_takes_five_steps_and_short_runs_reach_the_peak() -> None:
    rates = [learning_rate(step, 20, 1.0, ScheduleSettings()) for step in range(1, 7)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] < 1
    assert learning_rate(3, 3, 1.0, ScheduleSettings()) == 1.0


def test_batches_cover_each_epoch_in_an_order_of_its_own() -> None:
    settings = SupervisedSettings(epochs=2, batch_size=4)
    planned = batches(10, settings, seed=1)
    assert [len(batch) for batch in planned] == [4, 4, 2, 4, 4, 2]
    first, second = (
        [row for batch in half for row in batch] for half in (planned[:3], planned[3:])
    )
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert planned == batches(10, settings, seed=1) != batches(10, settings, seed=2)
    stopped = settings.model_copy(update={"max_steps": 4})
    assert batches(10, stopped, seed=1) == planned[:4]


@settings(deadline=None)
@given(
    padded=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    ranks=st.integers(1, 5),
    max_tokens=st.integers(1, 150),
)
def test_ranks_share_a_batch_in_equally_many_microbatches(
    padded: list[int], ranks: int, max_tokens: int
) -> None:
    plans = [microbatches_of_rank(padded, max_tokens, rank, ranks) for rank in range(ranks)]
    assert len({len(plan) for plan in plans}) == 1
    counted = [index for plan in plans for rows, weight in plan if weight == 1 for index in rows]
    assert sorted(counted) == list(range(len(padded)))
    for rows, _ in (microbatch for plan in plans for microbatch in plan):
        assert rows
        assert len(rows) * max(padded[i] for i in rows) <= max_tokens or len(rows) == 1


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("loss_on", ["final_turn", "all_assistant_turns"])
def test_the_sft_loss_is_the_mean_over_the_learned_tokens(llama: Path, loss_on: str) -> None:
    turns = (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "what"))
    long = Demonstration(Prompt("m", turns, None, None, False, False, "test"), "that")
    task = SFTTask(
        str(llama), [demonstration(1), long], [], SFTSettings.model_validate({"loss_on": loss_on})
    )
    model = load_causal_lm(str(llama), "float32")
    rows = task.rows(load_tokenizer(str(llama)))
    assert sum(rows[1].learned) == {"final_turn": 5, "all_assistant_turns": 10}[loss_on]
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.token_ids])
        labels = ids.masked_fill(~torch.tensor([row.learned]), -100)
        learned = sum(row.learned)
        total += float(model(input_ids=ids, labels=labels).loss.detach()) * learned
        count += learned
    with torch.no_grad():
        assert float(task.loss(model, rows, task.totals(rows))) == pytest.approx(
            total / count, abs=1e-5
        )


@dataclass
class Trained:
    """A fit under test and what it reported."""

    directory: Path
    reports: list[StepReport]
    result: "Future[SFTResult]"


def start_sft(
    pool: ThreadPoolExecutor, path: Path, tmp: Path, name: str, settings: SFTSettings
) -> Trained:
    held_out = [demonstration(number) for number in range(60, 69)]
    reports: list[StepReport] = []
    output = tmp / "models" / name
    future = pool.submit(
        train_sft,
        str(path),
        DEMONSTRATIONS,
        held_out,
        settings,
        output,
        SEED,
        tmp / "ray",
        reports.append,
    )
    return Trained(output, reports, future)


def pair(number: int, axis: str) -> PreferencePair:
    good, bad = ("fine", "worse " * (number % 3 + 1))
    safe = (True, False) if axis == "safety" else (None, None)
    return PreferencePair(prompt(number, "word " * (number % 4 + 1)), good, bad, axis, None, *safe)


def start_reward(pool: ThreadPoolExecutor, path: Path, tmp: Path) -> "Future[RewardTrainingResult]":
    return pool.submit(
        train_reward_model,
        str(path),
        "safety",
        [*(pair(n, "safety") for n in range(36)), *(pair(n, "helpfulness") for n in range(9))],
        [*(pair(n, "safety") for n in range(50, 60)), pair(60, "helpfulness")],
        SafetyRewardSettings(
            batch_size=8,
            epochs=3,
            optimizer=OptimizerSettings(learning_rate=1e-3),
            deepspeed=DeepSpeedSettings(ranks=1, zero_stage=1),
            **SHARED,
        ),
        tmp / "models" / "reward",
        SEED,
        tmp / "ray",
        lambda report: None,
    )


def give_up(report: StepReport) -> None:
    raise KeyError("the caller gives up")


@dataclass
class Fits:
    """Several fits that ran at the same time."""

    one_rank: Trained
    two_ranks: Trained
    broken: Trained
    abandoned: "Future[SFTResult]"
    reward: "Future[RewardTrainingResult]"


@pytest.fixture(scope="module")
def fits(
    llama: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fits]:
    tmp = tmp_path_factory.mktemp("fits")
    truncated = tmp / "truncated"
    shutil.copytree(llama, truncated)
    (truncated / "model.safetensors").write_bytes(b"not weights")
    with ThreadPoolExecutor(max_workers=5) as pool:
        yield Fits(
            one_rank=start_sft(pool, llama, tmp, "one", sft_settings(1, 0)),
            two_ranks=start_sft(pool, llama, tmp, "two", sft_settings(2, 2)),
            broken=start_sft(pool, truncated, tmp, "broken", sft_settings(1, 0)),
            abandoned=pool.submit(
                train_sft,
                str(llama),
                [demonstration(1)] * 2000,
                [],
                SFTSettings(batch_size=1, **SHARED),
                tmp / "models" / "abandoned",
                SEED,
                tmp / "ray",
                give_up,
            ),
            reward=start_reward(pool, llama, tmp),
        )


def test_sft_lowers_the_loss_and_counts_what_it_left_out(fits: Fits) -> None:
    result = fits.one_rank.result.result()
    losses = [report.loss for report in fits.one_rank.reports]
    assert losses[-1] < losses[0] - 0.3
    assert [report.step for report in fits.one_rank.reports] == [1, 2, 3, 4, 5]
    assert (result.fit.rows, result.fit.rows_left_out, result.fit.steps) == (60, 1, 5)
    assert result.fit.loss == losses[-1]
    assert result.fit.tokens == sum(report.tokens for report in fits.one_rank.reports)
    assert result.held_out_loss == pytest.approx(losses[-1], abs=0.3)


def test_the_saved_model_is_the_trained_one(fits: Fits, llama: Path) -> None:
    fits.one_rank.result.result()
    saved = AutoModelForCausalLM.from_pretrained(fits.one_rank.directory)
    assert saved.dtype == torch.float32
    assert weights_digest(saved) != weights_digest(load_causal_lm(str(llama), "float32"))
    tokenizer = AutoTokenizer.from_pretrained(fits.one_rank.directory)
    assert tokenizer.chat_template == load_tokenizer(str(llama)).chat_template
    assert not list(fits.one_rank.directory.parent.glob(".*.partial"))


def train_without_ray(llama: Path, outputs: dict[int, Path], store: Path) -> None:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 1), rank=0, world_size=1)
    settings = sft_settings(1, 0)
    task = SFTTask(str(llama), DEMONSTRATIONS, [], settings)
    for seed, output in outputs.items():
        run_rank(Job(task, settings, output, seed, Mock()), rank=0, ranks=1)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    fits: Fits, llama: Path, tmp_path: Path
) -> None:
    outputs = {SEED: tmp_path / "again", SEED + 1: tmp_path / "otherwise"}
    process = multiprocessing.get_context("spawn").Process(
        target=train_without_ray, args=(llama, outputs, tmp_path / "store")
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    fits.one_rank.result.result()
    first, again, otherwise = (
        weights_digest(load_causal_lm(str(directory), "float32"))
        for directory in (fits.one_rank.directory, *outputs.values())
    )
    assert first == again != otherwise


def assert_equal_training(trained: Trained, other: Trained) -> None:
    results = [each.result.result() for each in (trained, other)]
    assert results[0].held_out_loss == pytest.approx(results[1].held_out_loss, abs=1e-5)
    for mine, theirs in zip(trained.reports, other.reports, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-5)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)
        assert mine.learning_rate == theirs.learning_rate
        assert mine.tokens == theirs.tokens


def test_two_ranks_learn_what_one_learns(fits: Fits) -> None:
    assert_equal_training(fits.two_ranks, fits.one_rank)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_other_zero_stages_learn_the_same(
    fits: Fits, llama: Path, tmp_path: Path, zero_stage: int
) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        trained = start_sft(pool, llama, tmp_path, "zero", sft_settings(2, zero_stage))
    assert_equal_training(trained, fits.one_rank)
    saved = load_causal_lm(str(trained.directory), "float32").state_dict()
    for name, weight in (
        load_causal_lm(str(fits.one_rank.directory), "float32").state_dict().items()
    ):
        torch.testing.assert_close(saved[name], weight, atol=1e-4, rtol=0)


def test_a_ranks_input_error_reaches_the_caller_as_itself(fits: Fits) -> None:
    with pytest.raises(InputError, match="truncated") as caught:
        fits.broken.result.result()
    assert caught.value.field == "model.path"
    assert not fits.broken.directory.exists()


def test_a_caller_that_gives_up_ends_the_fit(fits: Fits) -> None:
    with pytest.raises(KeyError, match="gives up"):
        fits.abandoned.result()
    # What runs on Ray ends as well, long before its 2000 steps.
    deadline = time.monotonic() + 60
    while any(thread.name == "fit abandoned" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_reward_training_ranks_and_is_measured(fits: Fits) -> None:
    result = fits.reward.result()
    assert (result.mix.own, result.mix.other, result.mix.other_missing) == (36, 4, 0)
    assert result.mix.auxiliary_skipped_pairs == 4
    assert result.evaluation is not None
    assert result.evaluation.accuracy.count == result.evaluation.accuracy.total == 10
    assert result.evaluation.unsafe_recall.total == 10
    assert result.safety_calibration is not None
    assert sum(each.safe.total for each in result.safety_calibration.bins) == 20


def test_an_output_that_exists_is_left_alone(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing exists yet"):
        train_sft(
            str(llama), [TOO_LONG], [], SFTSettings(), llama, 0, tmp_path, lambda report: None
        )


def test_no_demonstration_is_an_error(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one demonstration"):
        train_sft(
            str(llama), [], [], SFTSettings(), tmp_path / "out", 0, tmp_path, lambda report: None
        )
