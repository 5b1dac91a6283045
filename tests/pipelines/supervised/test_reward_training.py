import math

import pytest
import torch

from rayward.actors.models.loading import load_scalar_model, load_tokenizer
from rayward.cluster.config.supervised import RewardTrainingSettings, SafetyRewardSettings
from rayward.cluster.errors import InputError
from rayward.cluster.types import Axis, Message, PreferencePair, Prompt, Rating
from rayward.pipelines.supervised.reward_model import RewardTask, mix_pairs
from tests.tiny import write_tiny_llama

SAFETY, HELPFULNESS = SafetyRewardSettings(), RewardTrainingSettings()


def pair(
    axis: Axis,
    number: int = 0,
    safe: tuple[bool | None, bool | None] = (None, None),
    rating: Rating | None = None,
) -> PreferencePair:
    asked = Prompt(f"{axis}-{number}", (Message("user", "q"),), None, None, False, False, "test")
    return PreferencePair(asked, "good", f"bad {number}", axis, rating, *safe)


def test_the_safety_mix_is_nine_to_one() -> None:
    pairs = [pair("safety", n) for n in range(90)] + [pair("helpfulness", n) for n in range(50)]
    mix, counts = mix_pairs(pairs, "safety", SAFETY, seed=1)
    assert (counts.own, counts.other, counts.other_missing) == (90, 10, 0)
    assert mix[:90] == pairs[:90]
    assert {each.axis for each in mix[90:]} == {"helpfulness"}
    assert len({each.prompt.id for each in mix}) == 100
    assert mix == mix_pairs(pairs, "safety", SAFETY, seed=1)[0]
    assert mix != mix_pairs(pairs, "safety", SAFETY, seed=2)[0]


def test_the_helpfulness_mix_is_one_to_one_and_says_what_is_missing() -> None:
    helpful = [pair("helpfulness", n) for n in range(20)]
    _, counts = mix_pairs(
        helpful + [pair("safety", n) for n in range(30)], "helpfulness", HELPFULNESS, seed=1
    )
    assert (counts.own, counts.other, counts.other_missing) == (20, 20, 0)
    _, counts = mix_pairs(
        helpful + [pair("safety", n) for n in range(5)], "helpfulness", HELPFULNESS, seed=1
    )
    assert (counts.own, counts.other, counts.other_missing) == (20, 5, 15)


def test_pairs_that_prefer_the_unsafe_answer_are_left_out_and_counted() -> None:
    pairs = [
        pair("safety", 0, (False, True)),
        pair("safety", 1, (True, False)),
        pair("safety", 2, (False, False)),
        pair("safety", 3, (False, None)),
        pair("safety", 4),
    ]
    mix, counts = mix_pairs(pairs, "safety", SAFETY, seed=0)
    assert mix == pairs[1:]
    assert (counts.unsafe_chosen, counts.auxiliary_skipped_pairs) == (1, 1)


def test_a_mix_needs_pairs_of_its_own_axis() -> None:
    with pytest.raises(InputError, match="at least one safety preference pair"):
        mix_pairs([pair("helpfulness")], "safety", SAFETY, seed=0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("llama")))


def task_of(llama: str, axis: Axis, pairs: list[PreferencePair]) -> RewardTask:
    settings = (
        SafetyRewardSettings(margin="large", auxiliary_weight=0.5)
        if axis == "safety"
        else RewardTrainingSettings(margin="large")
    )
    return RewardTask(llama, axis, pairs, [], settings, seed=0)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


@torch.no_grad()
def test_the_loss_by_hand_from_the_scores(llama: str) -> None:
    pairs = [
        pair("safety", 0, (True, False), "better"),
        pair("safety", 1, (None, False), "significantly"),
        pair("helpfulness", 22222),
    ]
    model = load_scalar_model(llama, "float32", seed=0)
    tokenizer = load_tokenizer(llama)
    task = task_of(llama, "safety", pairs)
    rows = task.rows(tokenizer)
    (c0, r0), (c1, r1), (c2, r2) = task.outputs(model, rows).tolist()
    ranking = (softplus(r0 - c0 + 2) + softplus(r1 - c1 + 3) + softplus(r2 - c2)) / 3
    auxiliary = (softplus(-c0) + softplus(r0) + softplus(r1)) / 3
    right = sum(c > r for c, r in ((c0, r0), (c1, r1), (c2, r2))) / 3
    expected = [ranking + 0.5 * auxiliary, ranking, auxiliary, right]
    totals = task.totals(rows)
    assert task.loss(model, rows, totals).tolist() == pytest.approx(expected, abs=1e-6)
    # Microbatches' shares add up to the batch's loss.
    shares = sum(task.loss(model, [row], totals) for row in rows)
    assert shares.tolist() == pytest.approx(expected, abs=1e-6)
    helpfulness = task_of(llama, "helpfulness", pairs)
    loss = helpfulness.loss(model, rows, totals).tolist()
    assert loss == pytest.approx([ranking, ranking, 0, right], abs=1e-6)


@torch.no_grad()
def test_a_batch_without_labels_has_no_auxiliary_loss(llama: str) -> None:
    task = task_of(llama, "safety", [pair("safety")])
    rows = task.rows(load_tokenizer(llama))
    loss = task.loss(load_scalar_model(llama, "float32", seed=0), rows, task.totals(rows))
    assert loss[2] == 0
    assert loss[0] == loss[1]


def test_a_row_knows_its_sizes(llama: str) -> None:
    (row,) = task_of(llama, "safety", [pair("safety")]).rows(load_tokenizer(llama))
    chosen, rejected = len(row.chosen_ids), len(row.rejected_ids)
    assert rejected == chosen + 1
    assert (row.longest, row.padded, row.tokens) == (rejected, 2 * rejected, chosen + rejected)


def test_the_prompt_is_shared_by_both_answers(llama: str) -> None:
    tokenizer = load_tokenizer(llama)
    (row,) = task_of(llama, "safety", [pair("safety")]).rows(tokenizer)
    start = "<user>q\n<assistant>".replace("\n", "<eos>\n")
    assert tokenizer.decode(row.chosen_ids) == f"{start}good<eos>"
    assert tokenizer.decode(row.rejected_ids) == f"{start}bad 0<eos>"
