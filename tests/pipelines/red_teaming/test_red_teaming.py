"""Red teaming with a real policy and a real safety model, both tiny and random."""

from collections import Counter
from collections.abc import Iterator
from math import exp, inf, log, nextafter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayward.actors.sampling.policy_session import PolicySession
from rayward.cluster.config.ppo import PPOSettings, SamplingSettings
from rayward.cluster.config.red_teaming import RedTeamingSettings
from rayward.cluster.intervals import wilson
from rayward.cluster.records.attempts import Attempt, read_attempts, write_attempts
from rayward.cluster.types import Message, Prompt, RiskCategory
from rayward.pipelines.data.rows import make_prompt
from rayward.pipelines.red_teaming.attacker import Attacker
from rayward.pipelines.red_teaming.red_team import RedTeamingResult, _key, red_team
from rayward.pipelines.red_teaming.templates import AttackTemplates, load_attack_templates
from tests.tiny import write_tiny_classifier, write_tiny_llama

TEMPLATES = """
vectors:
  logic_manipulation: ['so : {{ prompt }}']
  other: ['{% if "i" in prompt %}{{ prompt }} now{% endif %}']
attacker:
  logic_manipulation: 'l {{ prompt }}'
  other: 'o {{ prompt }}'
"""
LIMIT = 64
ALL, NONE = 1 - 1e-15, 1e-15
CRIME: RiskCategory = "illicit_and_criminal_activities"
ADVICE: RiskCategory = "unqualified_advice"


def prompt(text: str, category: RiskCategory | None = None, *before: Message) -> Prompt:
    messages = [*before, Message("user", text)]
    return make_prompt(messages, "test", adversarial=False, risk_category=category)


SEEDS = [
    prompt("Eins", CRIME),
    prompt("zwei", ADVICE),
    prompt("drei", CRIME),
    prompt("DREI", CRIME),
    prompt("x" * LIMIT, CRIME),
    prompt("sieben"),
]


@pytest.fixture(scope="module")
def session(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicySession]:
    folder = tmp_path_factory.mktemp("models")
    policy = write_tiny_llama(folder / "policy")
    safety = write_tiny_classifier(folder / "safety")
    with PolicySession(str(policy), PPOSettings(), {"safety": str(safety)}, 128, 0) as one:
        yield one


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> AttackTemplates:
    path = tmp_path_factory.mktemp("templates") / "mine.yaml"
    path.write_text(TEMPLATES)
    return load_attack_templates(str(path), False, ["logic_manipulation", "other"], attacker=True)


def settings(
    unsafe_below: float, rounds: int = 1, attempts: int = 1, seed_prompts: int = 100
) -> RedTeamingSettings:
    return RedTeamingSettings(
        vectors=["logic_manipulation", "other"],
        rounds=rounds,
        attempts=attempts,
        seed_prompts=seed_prompts,
        unsafe_below=unsafe_below,
        sampling=SamplingSettings(max_prompt_tokens=LIMIT, max_response_tokens=8),
    )


def last_turns(prompts: list[Prompt]) -> list[str]:
    return [one.messages[-1].content for one in prompts]


def middle(attempts: list[Attempt]) -> float:
    """A safety probability with half of the answers below it."""
    scores = sorted(one.safety for one in attempts)
    assert len(set(scores)) > len(scores) / 2
    return 1 / (1 + exp(-float(np.median(scores))))


@pytest.fixture(scope="module")
def found(session: PolicySession, templates: AttackTemplates) -> RedTeamingResult:
    known = [prompt(" SO :\n eins", None, Message("system", "be good"))]
    probe = red_team(session, SEEDS, settings(ALL, attempts=2), templates, known, seed=1)
    below = middle(probe.attempts)
    done: list[int] = []
    result = red_team(
        session, SEEDS, settings(below, 2, 2), templates, known, seed=1, on_done=done.append
    )
    assert sum(done) == len(result.attempts)
    # What is a violation has no part in what is asked first.
    assert [one.safety for one in result.attempts[:14]] == [one.safety for one in probe.attempts]
    for one in result.attempts:
        assert one.got_through == (one.safety < logit(below))
    return result


def test_every_rewrite_is_counted(found: RedTeamingResult) -> None:
    """Six seeds by two vectors, by hand."""
    first = found.summary.rounds[0]
    assert (first.seeds, first.from_round_before) == (6, 0)
    # "other" does not fit DREI and xxx.
    assert (first.by_template, first.unfit) == (10, 2)
    assert (first.by_attacker, first.blank, first.instruction_too_long) == (0, 0, 0)
    # "so : Eins" is known; "so : DREI" and "so : drei" are the same.
    assert (first.known, first.duplicates, first.too_long) == (1, 1, 1)
    assert (first.asked, first.violations.total) == (7, 14)
    asked = Counter(one.prompt.messages[-1].content.casefold() for one in found.attempts[:14])
    assert asked == dict.fromkeys(
        ["so : zwei", "so : drei", "so : sieben", "eins now", "zwei now", "drei now", "sieben now"],
        2,
    )
    assert [one.sample_index for one in found.attempts] == [0, 1] * (len(found.attempts) // 2)


def test_one_violating_answer_is_enough(found: RedTeamingResult) -> None:
    for number, report in enumerate(found.summary.rounds, start=1):
        attempts = [one for one in found.attempts if one.round == number]
        through = {one.prompt.id for one in attempts if one.got_through}
        assert report.violations.count == sum(one.got_through for one in attempts)
        assert report.violations.total == len(attempts) == 2 * report.asked
        assert report.kept == len(through)
    assert 0 < found.summary.rounds[0].kept < 7
    assert [one.id for one in found.kept] == list(
        dict.fromkeys(one.prompt.id for one in found.attempts if one.got_through)
    )


def test_a_round_begins_with_what_got_through(found: RedTeamingResult) -> None:
    first, second = found.summary.rounds
    assert (second.seeds, second.from_round_before) == (first.kept, first.kept)
    kept = {one.id: one for one in found.kept[: first.kept]}
    again = [one for one in found.attempts if one.round == 2]
    assert again
    for one in again:
        before = kept[one.seed_id].messages[-1].content
        assert one.prompt.messages[-1].content in (f"so : {before}", f"{before} now")
        assert one.prompt.risk_category == kept[one.seed_id].risk_category


def test_what_is_kept_is_tagged(found: RedTeamingResult) -> None:
    category = {"eins": CRIME, "zwei": ADVICE, "drei": CRIME, "sieben": None}
    for one in found.kept:
        text = one.messages[-1].content.casefold()
        word = next(word for word in category if word in text)
        assert one.risk_category == category[word]
        assert (one.adversarial, one.borderline, one.source) == (True, False, "red_teaming")
        assert one.id == prompt(one.messages[-1].content).id
    for attempt in found.attempts:
        vector = attempt.prompt.attack_vector
        assert attempt.template == f"{vector}/0"
        said = attempt.prompt.messages[-1].content
        assert said.startswith("so : ") if vector == "logic_manipulation" else said.endswith("now")
    assert len({_key(one) for one in found.kept}) == len(found.kept)


def test_rates_by_cell(found: RedTeamingResult) -> None:
    summary = found.summary
    violations = sum(one.got_through for one in found.attempts)
    total = len(found.attempts)
    assert (summary.attempted, summary.kept) == (total, len(found.kept))
    assert summary.violations_per_hundred == pytest.approx(100 * violations / total)
    assert (summary.violations.low, summary.violations.high) == wilson(violations, total)
    cells = {(one.risk_category, one.attack_vector): one for one in summary.cells}
    assert len(cells) == 4
    for (category, vector), cell in cells.items():
        own = [
            one.got_through
            for one in found.attempts
            if (one.prompt.risk_category, one.prompt.attack_vector) == (category, vector)
        ]
        assert (cell.count, cell.total) == (sum(own), len(own))
        assert (cell.low, cell.high) == wilson(sum(own), len(own))
    unknown = [one for one in found.attempts if one.prompt.risk_category is None]
    assert summary.without_cell == len(unknown) > 0


def test_the_same_seed_gives_the_same(session: PolicySession, templates: AttackTemplates) -> None:
    def play(seed: int) -> RedTeamingResult:
        return red_team(session, SEEDS, settings(0.5, 2, 1, 2), templates, [], seed)

    one, other = play(3), play(4)
    assert play(3) == one
    assert [a.response for a in one.attempts] != [a.response for a in other.attempts]
    assert len({frozenset(last_turns(play(seed).kept)) for seed in range(4)}) > 1


def test_fresh_seeds_fill_a_round_up(session: PolicySession, templates: AttackTemplates) -> None:
    seeds = [prompt(f"{letter}i") for letter in "abcdefgh"]
    nothing = red_team(session, seeds, settings(NONE, 3, 1, 3), templates, [], seed=0)
    assert nothing.kept == []
    assert [(one.seeds, one.from_round_before) for one in nothing.summary.rounds] == [
        (3, 0),
        (3, 0),
        (2, 0),  # eight are all
    ]
    assert Counter(one.seed_id for one in nothing.attempts) == {one.id: 2 for one in seeds}
    everything = red_team(session, seeds, settings(ALL, 3, 1, 3), templates, [], seed=0)
    # Three seeds by two vectors; then three of those six.
    assert [(one.seeds, one.from_round_before) for one in everything.summary.rounds] == [
        (3, 0),
        (3, 3),
        (3, 3),
    ]
    assert everything.summary.violations_per_hundred == 100


def test_nothing_to_begin_with(session: PolicySession, templates: AttackTemplates) -> None:
    result = red_team(session, [], settings(0.5), templates, [], seed=0)
    assert (result.kept, result.attempts) == ([], [])
    assert result.summary.violations_per_hundred is None
    assert result.summary.rounds[0].asked == 0


def logit(probability: float) -> float:
    return log(probability / (1 - probability))


def test_a_score_at_the_threshold_is_no_violation(
    session: PolicySession, templates: AttackTemplates
) -> None:
    probe = red_team(session, [prompt("drei")], settings(ALL, 1, 50), templates, [], seed=0)
    scores = [one.safety for one in probe.attempts]
    # Probabilities whose logit is exactly a score that was given; rounding spares a few.
    near = {score: 1 / (1 + exp(-score)) for score in scores}
    exact = [
        below
        for score, middle in near.items()
        for below in (nextafter(middle, 0), middle, nextafter(middle, 1))
        if logit(below) == score
    ]
    assert exact
    played = red_team(
        session, [prompt("drei")], settings(exact[0], 1, 50), templates, [], seed=0
    ).attempts
    through = {one.safety: one.got_through for one in played}
    at = logit(exact[0])
    assert through[at] is False
    assert through == {score: score < at for score in scores}


def test_earlier_turns_stay_and_are_judged(
    session: PolicySession, templates: AttackTemplates
) -> None:
    before = (Message("system", "s"), Message("user", "u"), Message("assistant", "a"))
    seeds = [prompt("ei", CRIME, *before)]
    result = red_team(session, seeds, settings(ALL, attempts=100), templates, [], seed=0)
    assert [one.messages for one in result.kept] == [
        (*before, Message("user", "so : ei")),
        (*before, Message("user", "ei now")),
    ]
    # A random model ends few answers within eight tokens; only those can be written out again.
    ended = [one for one in result.attempts if one.finish_reason == "stop"]
    assert ended
    prompts, responses = [one.prompt for one in ended], [one.response for one in ended]
    own = [one.safety for one in ended]
    assert session.score(prompts, responses, ["safety"]).scores["safety"].tolist() == own
    last = [prompt(one.messages[-1].content) for one in prompts]
    assert session.score(last, responses, ["safety"]).scores["safety"].tolist() != own


def test_an_attacker_rewrites_too(session: PolicySession, templates: AttackTemplates) -> None:
    seeds = [prompt(f"{number:03d} i" + "y" * (40 * (number == 7))) for number in range(60)]
    # One token each: some of 120 answers are blank, and some are the same.
    attacker = Attacker(
        session, SamplingSettings(max_prompt_tokens=40, max_response_tokens=1), templates
    )
    result = red_team(session, seeds, settings(ALL), templates, [], seed=0, attacker=attacker)
    (only,) = result.summary.rounds
    assert (only.by_template, only.unfit) == (120, 0)
    assert only.instruction_too_long == 2
    assert only.blank > 0
    assert only.by_attacker + only.blank + only.instruction_too_long == 120
    assert only.by_template + only.by_attacker == (
        only.known + only.duplicates + only.too_long + only.asked
    )
    own = [one for one in result.attempts if one.template == "attacker"]
    assert len(own) == only.by_attacker - only.duplicates > 10
    texts = last_turns([one.prompt for one in own])
    assert texts == [text.strip() for text in texts]
    assert {one.prompt.attack_vector for one in own} == {"logic_manipulation", "other"}
    assert {one.seed_id for one in own} <= {one.id for one in seeds}


def test_attempts_on_disk(found: RedTeamingResult, tmp_path: Path) -> None:
    write_attempts(tmp_path / "attempts.parquet", found.attempts)
    # Scores are float32 already.
    assert read_attempts(tmp_path / "attempts.parquet") == found.attempts
    bad = Attempt(SEEDS[0], "a", inf, False, 1, "other/0", "s", 0, "stop")
    with pytest.raises(ValueError, match="safety is inf"):
        write_attempts(tmp_path / "attempts.parquet", [bad])


@given(st.text(min_size=1), st.lists(st.sampled_from(" \t\n"), min_size=1).map("".join))
def test_case_and_white_space_do_not_tell_prompts_apart(text: str, space: str) -> None:
    wide = space.join(["", *text.split(), ""])
    plain = Prompt("", (Message("user", text),), None, None, False, False, "")
    for same in (wide, text.casefold()):
        turns = (Message("system", "s"), Message("user", same))
        assert _key(Prompt("", turns, None, None, False, False, "")) == _key(plain)
    other = (Message("user", text + "x"),)
    assert _key(Prompt("", other, None, None, False, False, "")) != _key(plain)
