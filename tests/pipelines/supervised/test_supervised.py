import os
import pickle
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayward.actors.models.loading import load_causal_lm, load_tokenizer, weights_digest
from rayward.cluster.config.roles import (
    DeepSpeedSettings,
    LoRASettings,
    OptimizerSettings,
    Resources,
)
from rayward.cluster.config.supervised import (
    SafetyRewardSettings,
    ScheduleSettings,
    SFTSettings,
    SupervisedSettings,
)
from rayward.cluster.errors import InputError
from rayward.cluster.types import Demonstration, Message, PreferencePair, Prompt
from rayward.pipelines.supervised.loop import (
    Job,
    LoopResult,
    StepReport,
    batches,
    learning_rate,
    run_rank,
)
from rayward.pipelines.supervised.reward_model import RewardTrainingResult, train_reward_model
from rayward.pipelines.supervised.sft import SFTResult, SFTTask, train_sft
from tests import preloaded
from tests.tiny import write_tiny_llama


def prompt(number: int, content: str) -> Prompt:
    messages = (Message("user", content),)
    return Prompt(f"p{number}", messages, None, None, False, False, "test")


def demonstration(number: int) -> Demonstration:
    question = prompt(number, "word " * (number % 7 + 1))
    return Demonstration(question, "answer " * (number % 5 + 1))


TOO_LONG = Demonstration(prompt(99, "long"), "x" * 200)
DEMONSTRATIONS = [*(demonstration(number) for number in range(60)), TOO_LONG]
HELD_OUT = [demonstration(number) for number in range(60, 69)]
SEED = 7
STEPS = 6
SHARED = {"max_tokens": 100, "resources": Resources(cpus=0.5)}


def sft_settings(ranks: int, zero_stage: int, **more: Any) -> SFTSettings:  # noqa: ANN401
    return SFTSettings(
        batch_size=11,
        max_steps=STEPS,
        max_tokens_per_microbatch=200,
        optimizer=OptimizerSettings(learning_rate=1e-3),
        deepspeed=DeepSpeedSettings(ranks=ranks, zero_stage=zero_stage),
        **SHARED,
        **more,
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


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("loss_on", ["final_turn", "all_assistant_turns"])
def test_the_sft_loss_is_the_mean_over_the_learned_tokens(llama: Path, loss_on: str) -> None:
    turns = (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "what"))
    long = Demonstration(Prompt("m", turns, None, None, False, False, "test"), "that")
    settings = SFTSettings.model_validate({"loss_on": loss_on})
    task = SFTTask(str(llama), [demonstration(1), long], [], settings, seed=0)
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
    reports: list[StepReport] = []
    output = tmp / "models" / name
    future = pool.submit(
        train_sft,
        str(path),
        DEMONSTRATIONS,
        HELD_OUT,
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
    assert [report.step for report in fits.one_rank.reports] == [1, 2, 3, 4, 5, 6]
    assert (result.fit.rows, result.fit.rows_left_out, result.fit.steps) == (60, 1, 6)
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


class Taken:
    """Takes the reports of a loop that runs without Ray."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def put(self, report: dict[str, Any]) -> None:
        self.reports.append(StepReport(**report))


Case = tuple[SFTSettings, int]  # and the seed
Loop = tuple[list[StepReport], LoopResult]

ALONE: dict[str, Case] = {
    "again": (sft_settings(1, 0), SEED),
    "otherwise": (sft_settings(1, 0), SEED + 1),
    "recomputed": (sft_settings(1, 0, gradient_checkpointing=True), SEED),
    "lora": (sft_settings(1, 0, lora=LoRASettings(rank=4)), SEED),
}
SPLIT: dict[str, Case] = {
    **{f"zero-{stage}": (sft_settings(2, stage), SEED) for stage in (0, 1, 3)},
    "lora-3": (
        sft_settings(2, 3, lora=LoRASettings(rank=4), gradient_checkpointing=True),
        SEED,
    ),
}
"""On two ranks; stage 2 is trained on Ray."""


def train_without_ray(
    llama: Path, cases: dict[str, Case], rank: int, ranks: int, folder: Path
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(ranks))
    store = dist.FileStore(str(folder / f"store-{ranks}"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    for name, (settings, seed) in cases.items():
        taken: Any = Taken()
        task = SFTTask(str(llama), DEMONSTRATIONS, HELD_OUT, settings, seed)
        result = run_rank(Job(task, settings, folder / name, seed, taken), rank, ranks)
        if rank == 0:
            (folder / f"{name}.pkl").write_bytes(pickle.dumps((taken.reports, result)))


@pytest.fixture(scope="module")
def loops(llama: Path, preloading: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where loops that ran without Ray left their models, and beside each its `Loop`."""
    folder = tmp_path_factory.mktemp("loops")
    processes = [
        preloaded.call(train_without_ray, llama, cases, rank, ranks, folder)
        for cases, ranks in ((ALONE, 1), (SPLIT, 2))
        for rank in range(ranks)
    ]
    for process in processes:
        assert process.wait() == 0
    return folder


def loop(loops: Path, name: str) -> Loop:
    result: Loop = pickle.loads((loops / f"{name}.pkl").read_bytes())
    return result


def test_the_same_seed_gives_the_same_weights_bit_for_bit(fits: Fits, loops: Path) -> None:
    fits.one_rank.result.result()
    first, again, otherwise = (
        weights_digest(load_causal_lm(str(directory), "float32"))
        for directory in (fits.one_rank.directory, loops / "again", loops / "otherwise")
    )
    assert first == again != otherwise


def assert_equal_training(one: list[StepReport], other: list[StepReport]) -> None:
    assert len(one) == len(other) == STEPS
    for mine, theirs in zip(one, other, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-5)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)
        assert mine.learning_rate == theirs.learning_rate
        assert mine.tokens == theirs.tokens


def test_two_ranks_learn_what_one_learns(fits: Fits) -> None:
    one, two = fits.one_rank, fits.two_ranks
    losses = [each.result.result().held_out_loss for each in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert_equal_training(one.reports, two.reports)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("zero-0", "again"),
        ("zero-1", "again"),
        ("zero-3", "again"),
        ("recomputed", "again"),
        ("lora-3", "lora"),
    ],
)
def test_other_stages_learn_the_same(loops: Path, name: str, like: str) -> None:
    (reports, result), (expected, alone) = loop(loops, name), loop(loops, like)
    assert_equal_training(reports, expected)
    assert result.held_out_outputs == pytest.approx(alone.held_out_outputs, abs=1e-3)
    saved = load_file(loops / name / "model.safetensors")
    for key, weight in load_file(loops / like / "model.safetensors").items():
        torch.testing.assert_close(saved[key], weight, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_adapters_are_learned_and_merged_into_an_ordinary_model(loops: Path, llama: Path) -> None:
    reports, result = loop(loops, "lora")
    assert reports[-1].loss < reports[0].loss - 0.1
    assert {path.name for path in (loops / "lora").iterdir()} == {
        path.name for path in (loops / "again").iterdir()
    }
    start = load_file(llama / "model.safetensors")
    merged = load_file(loops / "lora" / "model.safetensors")
    assert merged.keys() == start.keys()
    moved = {name for name, weight in merged.items() if not torch.equal(weight, start[name])}
    assert moved == {name for name in start if "proj" in name}
    # The merged model says of held-out rows what the trained one said.
    task = SFTTask(str(loops / "lora"), [], HELD_OUT, sft_settings(1, 0), SEED)
    rows = task.held_out_rows(load_tokenizer(str(llama)))
    with torch.no_grad():
        said = task.outputs(task.load_model("float32"), [rows[index] for index in result.held_out])
    assert result.held_out_outputs == pytest.approx(said.numpy(), abs=1e-3)


def test_a_wrong_name_of_a_layer_is_an_input_error(llama: Path) -> None:
    lora = LoRASettings(target_modules=["query"])
    with pytest.raises(InputError, match="'query', expected") as caught:
        SFTTask(str(llama), [], [], SFTSettings(lora=lora), SEED).load_model("float32")
    assert caught.value.field == "sft.lora.target_modules"


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
