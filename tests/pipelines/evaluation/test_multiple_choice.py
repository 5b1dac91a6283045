"""MC1 and MC2, counted by hand, and the text that a policy reads."""

from dataclasses import replace
from math import exp

import pytest

from rayward.cluster.records.benchmarks import TruthfulQuestion
from rayward.pipelines.evaluation.multiple_choice import (
    ChoiceScore,
    EncodedChoices,
    encode_choices,
    mc1,
    mc2,
    question_text,
    score_choices,
)
from tests.tiny import tiny_tokenizer

QUESTION = TruthfulQuestion(
    id="1",
    category="Law",
    question="Who says so?",
    best_answer="Nobody.",
    correct_answers=("Nobody.", "No one."),
    incorrect_answers=("You.", "They all do."),
    source="",
)


def test_mc2_is_the_mass_on_the_correct_answers() -> None:
    assert mc2([-1, -2, -1.5], [True, True, False]) == pytest.approx(0.692804, abs=1e-6)
    assert mc2([-1, -2, -1.5], [False, False, True]) == pytest.approx(1 - 0.692804, abs=1e-6)


def test_mc2_of_long_answers_does_not_underflow() -> None:
    """exp(-5000) is 0: what counts is how far the logprobs are apart."""
    far = [-5001.0, -5002.0, -5001.5]
    assert exp(max(far)) == 0
    assert mc2(far, [True, True, False]) == pytest.approx(0.692804, abs=1e-6)


@pytest.mark.parametrize(
    ("best", "incorrect", "right"),
    [(-1.0, [-2.0, -1.5], True), (-1.6, [-2.0, -1.5], False), (-1.5, [-2.0, -1.5], True)],
)
def test_mc1_holds_the_best_answer_against_the_incorrect_ones(
    best: float, incorrect: list[float], right: bool
) -> None:
    assert mc1(best, incorrect) is right


def encoded(**changes: tuple[str, ...]) -> EncodedChoices:
    return encode_choices(tiny_tokenizer(), replace(QUESTION, **changes))


def test_other_correct_answers_do_not_count_in_mc1_and_do_in_mc2() -> None:
    choices = encoded()
    assert choices.answers == ("Nobody.", "No one.", "You.", "They all do.")
    score = score_choices(choices, [-3.0, -1.0, -2.0, -4.0])
    mass = exp(-3) + exp(-1)
    expected = mass / (mass + exp(-2) + exp(-4))
    assert score == ChoiceScore(mc1=False, mc2=pytest.approx(expected))


def test_an_answer_twice_in_a_list_counts_once_and_one_in_both_on_both_sides() -> None:
    choices = encoded(
        correct_answers=("Nobody.", "Unknown.", "Nobody."),
        incorrect_answers=("You.", "Unknown.", "You."),
    )
    assert choices.answers == ("Nobody.", "Unknown.", "You.")
    score = score_choices(choices, [-1.0, -2.0, -3.0])
    right, wrong = exp(-1) + exp(-2), exp(-2) + exp(-3)
    assert score == ChoiceScore(mc1=True, mc2=pytest.approx(right / (right + wrong)))


def test_the_policy_reads_six_pairs_and_then_the_question_and_a_choice() -> None:
    text = question_text(QUESTION)
    assert text.startswith("Q: What is human life expectancy in the United States?\nA: Human")
    assert text.count("Q: ") == 7
    assert text.endswith("Barcelona, Spain.\n\nQ: Who says so?\nA:")
    tokenizer, choices = tiny_tokenizer(), encoded()
    assert tokenizer.decode(choices.prompt_ids) == text
    read = [tokenizer.decode(ids) for ids in choices.token_ids]
    assert read == [f"{text} {answer}" for answer in choices.answers]
    assert choices.longest == len(text) + len(" They all do.")
