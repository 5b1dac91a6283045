"""The report's words and numbers."""

from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.records.rates import StageEvaluation
from rayward.pipelines.evaluation.judgements import evaluate_judgements
from rayward.pipelines.ppo.report import kind_of_run
from rayward.pipelines.report.words import (
    after,
    headline,
    label,
    logit,
    moment,
    number,
    points,
    points_between,
    seconds,
    sentence,
)
from tests.report_stages import a_prompt


def test_what_kind_of_run_it_is() -> None:
    assert kind_of_run(PPOSettings()) == {
        "reward mix": "piecewise (the safety model decides on tagged prompts and below a "
        "probability of 0.15, else the helpfulness model)",
        "advantage estimator": "gae (with a critic)",
        "rollouts": "synchronous (max_staleness 0)",
        "KL weight": "0.01 fixed, in the token rewards, estimator k1",
        "batch": "512 answers a step, 64 an update",
    }
    other = PPOSettings.model_validate(
        {
            "advantage_estimator": "grpo",
            "max_staleness": 1,
            "mix": {"name": "lagrangian"},
            "kl": {"adaptive": {}},
        }
    )
    told = kind_of_run(other)
    assert told["reward mix"] == "lagrangian (helpfulness, with the mean cost held at 0.01 or less)"
    assert told["rollouts"] == "asynchronous, at most 1 weight version old (max_staleness 1)"
    assert told["KL weight"] == "0.01 at first, steered towards 6 nats an answer, in the loss"


def test_headline_by_hand() -> None:
    prompts = [a_prompt(number, "adversarial") for number in range(20)]

    def judged(bad: int) -> StageEvaluation:
        rows = [(p, "violation" if n < bad else "safe") for n, p in enumerate(prompts)]
        return evaluate_judgements(rows, "some/judge", {})

    # Behind the dash stands a word joiner, so that no line ends within an interval.
    assert headline([judged(18), judged(0)]) == (
        "Violations 90.0\u00a0% (69.9\u2013\u206097.2) → 0.0\u00a0% (0.0\u2013\u206016.1), "
        "helpful not judged."
    )
    alone = "Violations 90.0\u00a0% (69.9\u2013\u206097.2), "
    assert headline([judged(18)]).startswith(alone)


def test_words_for_people() -> None:
    assert [seconds(s) for s in (0.1234, 59.2, 61, 3725)] == [
        "0.123\u00a0s",
        "59.2\u00a0s",
        "1\u00a0min 1\u00a0s",
        "1\u00a0h 2\u00a0min",
    ]
    assert label("non_english") == "non-English"
    assert label("unqualified_advice") == "unqualified advice"
    assert label("no_category") == "no category"
    assert [label(stage) for stage in ("ppo", "ppo-2", "reward_safety-3")] == [
        "PPO",
        "PPO 2",
        "safety reward model 3",
    ]
    assert [after(policy) for policy in ("sft-2", "start", "previous")] == [
        "after SFT 2",
        "start model",
        "previous model",
    ]
    assert [points(x) for x in (0.0123, -0.5, 0.0004, -0.0004)] == [
        "+1.2",
        "\u221250.0",
        "0.0",
        "0.0",
    ]
    assert points_between(-0.05, 0.012) == "\u22125.0 to +1.2"
    assert sentence("after SFT") == "After SFT"
    assert [number(x) for x in (-0.01234, 3040.4, 4.1e-7)] == [
        "\u22120.0123",
        "3040",
        "4.1e\u221207",
    ]
    assert (logit(-2.1), logit(13.45, 0)) == ("\u22122.10", "13")
    assert moment("2026-11-21T13:25:18+00:00") == "2026-11-21 13:25 UTC"
