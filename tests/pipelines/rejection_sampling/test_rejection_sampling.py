"""Best of K: by hand, by property, and with a real sampler and real reward models."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rayward.actors.sampling.policy_session import PolicySession
from rayward.actors.scoring.mixes import make_mix
from rayward.cluster.config.mixes import WeightedSumMixSettings
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.rejection_sampling import (
    RejectionSamplingSettings,
    TemperatureSearchSettings,
)
from rayward.cluster.errors import InputError
from rayward.cluster.records.best_samples import (
    BestSample,
    find_best,
    read_best,
    unique_demonstrations,
    write_best,
)
from rayward.cluster.types import AXES, Message, Prompt
from rayward.pipelines.rejection_sampling.best_of_k import (
    best_of_k,
    keep_earlier,
    reward_curve,
    score_again,
    search_temperature,
)
from rayward.pipelines.run.encoding import EncodedPrompt, encode_prompts

MIX = make_mix(WeightedSumMixSettings())


def a_prompt(name: str, adversarial: bool = False) -> Prompt:
    return Prompt(
        id=name,
        messages=(Message("user", f"how do i {name} ?"),),
        risk_category=None,
        attack_vector=None,
        adversarial=adversarial,
        borderline=False,
        source="test",
    )


def test_reward_against_k_by_hand() -> None:
    curve = reward_curve(np.array([[1.0, 3.0, 2.0], [0.0, -4.0, 5.0]]))
    # Best of the first K: 1 3 3 and 0 0 5; medians 1 2 2 and 0 -2 0.
    assert curve.max == (0.5, 1.5, 4.0)
    assert curve.median == (0.5, 0.0, 1.0)
    assert curve.prompts == 2


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 8)),
        elements=st.floats(-1e6, 1e6),
    )
)
def test_the_best_reward_never_falls_as_k_grows(rewards: np.ndarray) -> None:  # type: ignore[type-arg]
    curve = reward_curve(rewards)
    assert list(curve.max) == sorted(curve.max)
    assert curve.max[-1] == pytest.approx(rewards.max(axis=1).mean())
    # Fewer samples are the beginning of more.
    fewer = reward_curve(rewards[:, : max(1, rewards.shape[1] // 2)])
    assert curve.max[: len(fewer.max)] == fewer.max


def test_the_best_of_all_earlier_rounds_is_kept_by_todays_rewards() -> None:
    one, two = a_prompt("one"), a_prompt("two")
    earlier = [
        BestSample(one, "old", 9.0, 1),
        BestSample(one, "new", 1.0, 2),
        BestSample(two, "only", 0.0, 1),
    ]
    kept = keep_earlier(earlier, [0.5, 2.0, -1.0])
    assert [(row.prompt.id, row.response, row.reward, row.round) for row in kept] == [
        ("one", "new", 2.0, 2),
        ("two", "only", -1.0, 1),
    ]


def test_best_samples_survive_the_disk(tmp_path: Path) -> None:
    rows = [BestSample(a_prompt("one", adversarial=True), "yes", 0.1, 3)]
    output = tmp_path / "outputs" / "rejection_sampling"
    output.mkdir(parents=True)
    write_best(output, rows)
    assert read_best(output) == find_best(str(tmp_path)) == rows
    assert find_best(str(output / "best.parquet")) == rows
    assert read_best(tmp_path) == []
    with pytest.raises(InputError, match=r"rejection_sampling\.earlier"):
        find_best(str(output))


def test_an_answer_is_learned_once() -> None:
    rows = [BestSample(a_prompt(name), text, 0.0, 1) for name, text in ("ax", "ay", "ax", "bx")]
    learned = unique_demonstrations(row.demonstration for row in rows)
    assert [(one.prompt.id, one.response) for one in learned] == [
        ("a", "x"),
        ("a", "y"),
        ("b", "x"),
    ]


@pytest.fixture(scope="module")
def prompts(both_session: PolicySession) -> list[EncodedPrompt]:
    asked = [a_prompt(f"thing {i}", adversarial=i % 2 == 0) for i in range(6)]
    encoded, _ = encode_prompts(both_session.tokenizer, asked, 200, "field")
    return encoded


def settings(k: int) -> RejectionSamplingSettings:
    return RejectionSamplingSettings(
        samples_per_prompt=k,
        sampling=SamplingSettings(max_prompt_tokens=200, max_response_tokens=40),
        temperature_search=TemperatureSearchSettings(temperatures=[1.5, 0.5], prompts=3),
    )


def test_more_samples_begin_with_the_same_ones(
    both_session: PolicySession, prompts: list[EncodedPrompt]
) -> None:
    found = {
        k: best_of_k(both_session, prompts, settings(k), 1.0, MIX, 1, 5, lambda more: None)
        for k in (2, 6)
    }
    few, many = found[2].curves["all"], found[6].curves["all"]
    assert many.max[:2] == pytest.approx(few.max, abs=1e-4)
    assert list(many.max) == sorted(many.max)
    assert many.max[-1] > many.max[0]
    assert set(found[6].curves) == {"all", "adversarial", "harmless"}
    assert found[6].samples == 36
    assert found[6].samples_cut > 0, "this policy rambles"
    assert len(found[6].best) + found[6].prompts_without == len(prompts)


def test_earlier_answers_are_scored_by_todays_models(both_session: PolicySession) -> None:
    rows = [BestSample(a_prompt(name), f"{name} !", 7.0, 1) for name in ("one", "two")]
    again = score_again(both_session, rows, MIX, lambda more: None)
    scored = both_session.score([row.prompt for row in rows], ["one !", "two !"], AXES).scores
    assert again == pytest.approx((scored["safety"] + scored["helpfulness"]) / 2, abs=1e-6)
    assert again != [7.0, 7.0]


def test_the_search_takes_the_temperature_with_the_best_best(
    both_session: PolicySession, prompts: list[EncodedPrompt]
) -> None:
    told: list[int] = []
    taken, trials = search_temperature(both_session, prompts, settings(4), MIX, 5, told.append)
    assert [trial.temperature for trial in trials] == [0.5, 1.5]
    assert taken == max(trials, key=lambda trial: trial.best_reward).temperature
    assert sum(told) == 2 * 3 * 4
    without = settings(4).model_copy(update={"temperature_search": None})
    nothing = cast(PolicySession, None)
    assert search_temperature(nothing, prompts, without, MIX, 5, told.append) == (1.0, [])
