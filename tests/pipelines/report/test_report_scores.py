"""Scores before and after."""

from rayward.pipelines.report.scores import score_distributions
from tests.report_run import a_sample
from tests.report_stages import a_prompt


def test_scores_before_and_after_by_hand() -> None:
    adversarial, benign = a_prompt(1, "adversarial"), a_prompt(2, "benign")
    samples = {
        "sft": [
            *(a_sample(adversarial, safety=score, helpfulness=0.5) for score in range(-10, 1)),
            a_sample(benign, safety=4.0),  # helpfulness was not scored
        ],
        "ppo": [a_sample(adversarial, safety=6.0, helpfulness=0.5)],
    }
    safety, helpfulness = score_distributions(samples)
    assert [row.kind for row in safety.rows] == ["adversarial", "benign"]
    before, later = safety.rows[0].spreads
    assert before is not None
    assert later is not None
    # Of -10 ... 0 a tenth is below -9 and a tenth above -1.
    assert (before.answers, before.mean, before.low, before.high) == (11, -5, -9, -1)
    assert (later.answers, later.mean) == (1, 6)
    assert safety.rows[1].spreads[1] is None
    assert [row.kind for row in helpfulness.rows] == ["adversarial"]
    chart = safety.charts[0]
    assert (
        "after SFT 11 answers, mean \u22125.00; after PPO 1 answers, mean 6.00" in chart.description
    )
    assert [(key.name, key.series) for key in chart.legend] == [("after SFT", 2), ("after PPO", 1)]
    # One of one answer lies in the last bin: the axis goes up to 100 %.
    assert ">100</text>" in chart.svg
    assert score_distributions({"sft": [a_sample(benign)]}) == []
