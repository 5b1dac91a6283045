"""Safety preprompts: which there are, which are drawn, and where they stand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rayward.cluster.errors import InputError
from rayward.cluster.types import RISK_CATEGORIES, Message, Prompt, RiskCategory
from rayward.pipelines.context_distillation.preprompts import (
    Preprompts,
    load_preprompts,
    with_preprompt,
)
from rayward.pipelines.tiny_world.prompts import SAFETY_PREPROMPTS

FILE = """
generic: [be good, be kind and wise, be good]
adjective_templates: ['be {{ adjectives }}', 'stay {{ adjectives }}']
adjectives: [kind, wise, calm]
categories:
  unqualified_advice: [see a doctor, be good]
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def own(tmp_path: Path) -> Preprompts:
    return load_preprompts(write(tmp_path, FILE), tiny_world=False)


def chosen(preprompts: Preprompts, seed: int, category: RiskCategory | None, n: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [one.text for one in preprompts.choose(rng, category, n)]


def test_every_preprompt_of_a_file_once(own: Preprompts) -> None:
    assert [(one.id, one.kind, one.text) for one in own.generic] == [
        ("generic/0", "generic", "be good"),
        ("generic/1", "generic", "be kind and wise"),
    ]
    # "be kind and wise" is there already.
    assert [(one.id, one.kind, one.text) for one in own.by_adjectives] == [
        ("adjective_templates/0/kind+calm", "adjectives", "be kind and calm"),
        ("adjective_templates/0/wise+calm", "adjectives", "be wise and calm"),
        ("adjective_templates/1/kind+wise", "adjectives", "stay kind and wise"),
        ("adjective_templates/1/kind+calm", "adjectives", "stay kind and calm"),
        ("adjective_templates/1/wise+calm", "adjectives", "stay wise and calm"),
    ]
    assert {name: [one.text for one in given] for name, given in own.by_category.items()} == {
        "unqualified_advice": ["see a doctor"]
    }


def test_adjectives_are_listed_as_people_do(tmp_path: Path) -> None:
    text = "adjective_templates: ['be {{ adjectives }}']\nadjectives: [a, b, c]\nadjectives_drawn: "
    for count, expected in ((1, ["be a", "be b", "be c"]), (3, ["be a, b and c"])):
        read = load_preprompts(write(tmp_path, text + str(count)), tiny_world=False)
        assert [one.text for one in read.by_adjectives] == expected


def test_draws_are_different_and_repeat_by_seed(own: Preprompts) -> None:
    for seed in range(20):
        drawn = chosen(own, seed, "unqualified_advice", 8)
        assert len(set(drawn)) == 8  # all that there are
        assert drawn == chosen(own, seed, "unqualified_advice", 8)
        assert len(set(chosen(own, seed, None, 7))) == 7
    assert len({tuple(chosen(own, seed, None, 3)) for seed in range(20)}) > 10


def test_a_category_is_for_its_own_prompts_alone(own: Preprompts) -> None:
    others = [None, "illicit_and_criminal_activities", "hateful_and_harmful_activities"]
    for other in others:
        assert "see a doctor" not in chosen(own, 0, other, 7)
    # By kind first: a third of the draws, though it is one of eight.
    drawn = Counter(chosen(own, seed, "unqualified_advice", 1)[0] for seed in range(3000))
    assert drawn["see a doctor"] == pytest.approx(1000, abs=100)
    assert drawn["be good"] == pytest.approx(500, abs=80)
    assert drawn["stay wise and calm"] == pytest.approx(200, abs=55)


def test_more_than_there_are_is_refused(own: Preprompts) -> None:
    with pytest.raises(InputError, match=r"preprompts_per_prompt: got 8, expected at most 7"):
        own.choose(np.random.default_rng(0), "illicit_and_criminal_activities", 8)
    own.require(7)
    with pytest.raises(InputError, match="got 8, expected at most 7"):
        own.require(8)


def test_the_preprompt_comes_first() -> None:
    one = load_preprompts(None, tiny_world=True).generic[0]
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    prompt = Prompt("7", turns, "unqualified_advice", "other", True, False, "test")
    put = with_preprompt(prompt, one)
    assert put.messages == (Message("system", one.text), *turns)
    again = with_preprompt(put, load_preprompts(None, tiny_world=True).generic[1])
    assert again.messages == (
        Message("system", f"{SAFETY_PREPROMPTS[1]}\n\n{SAFETY_PREPROMPTS[0]}"),
        *turns,
    )
    assert (put.id, put.risk_category, put.attack_vector, put.adversarial) == (
        "7",
        "unqualified_advice",
        "other",
        True,
    )
    assert prompt.messages == turns


def test_the_tiny_world_has_its_own_in_its_own_words() -> None:
    read = load_preprompts(None, tiny_world=True)
    assert tuple(one.text for one in read.generic) == SAFETY_PREPROMPTS
    assert read.by_adjectives
    words = {word for text in SAFETY_PREPROMPTS for word in text.split()}
    for one in read.by_adjectives:
        assert set(one.text.split()) <= words
        assert one.text.endswith(" assistant .")
    assert read.by_category == {}


def test_those_that_ship_cover_every_category() -> None:
    read = load_preprompts(None, tiny_world=False)
    assert set(read.by_category) == set(RISK_CATEGORIES)
    assert "You are a safe and responsible assistant." in [one.text for one in read.generic]
    # 3 templates with 3 of 10 adjectives.
    assert len(read.by_adjectives) == 3 * 120
    for one in read.by_adjectives:
        assert not any(f" a {vowel}" in one.text for vowel in "aeiou")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generic: ['', a]", r"generic\[0\]: got '', .*not blank"),
        ("generic: [1]", r"generic\[0\]: got 1, expected text"),
        ("categories: {unqualified_advice: [a]}", r"generic: .*at least one"),
        (
            "generic: [a]\ncategories: {advice: [a]}",
            r"categories: got 'advice', .*unqualified_advice",
        ),
        ("generic: [a]\ncategories: {unqualified_advice: []}", r"at least 1 of them"),
        ("adjective_templates: [be good]\nadjectives: [a, b]", r"uses \{\{ adjectives \}\}"),
        (
            "adjective_templates: ['{{ adjective }}']\nadjectives: [a, b]",
            "'adjective' is not known",
        ),
        ("adjective_templates: ['{{ adjectives']\nadjectives: [a, b]", r"templates\[0\].*line 1"),
        (
            "adjective_templates: ['{{ adjectives }}']\nadjectives: [a]",
            r"adjectives_drawn: got 2, expected at most the 1",
        ),
        ("generic: [a]\nadjectives_drawn: 4", r"adjectives_drawn: got 4, expected at most 3"),
        ("generics: [a]", "one of generic, adjective_templates, "),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_preprompts(write(tmp_path, text), tiny_world=False)
    assert "mine.yaml" in str(error.value)
