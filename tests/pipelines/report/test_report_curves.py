"""Which curves a run has, how they are drawn, and where the time of a step goes."""

import re

import pytest

from rayward.cluster.config.ppo import PPOSettings
from rayward.pipelines.ppo.report import ppo_curves, step_time
from rayward.pipelines.report.charts import line_chart
from tests.report_run import COMMON, CRITIC, MEASURED, PPO_METRICS


def curves(names: tuple[str, ...], **settings: object) -> tuple[set[str], list[str]]:
    """Titles of the charts that such a PPO run has, and what it misses."""
    rows = [{"stage": "ppo", "step": step, **dict.fromkeys(names, 0.5)} for step in (1, 2)]
    groups = ppo_curves("ppo", rows, PPOSettings.model_validate(settings))
    assert all(group.charts for group in groups)
    return (
        {chart.title for group in groups for chart in group.charts},
        [name for group in groups for name in group.missing],
    )


def test_each_kind_of_run_has_its_own_curves_and_misses_no_other() -> None:
    usual, missing = curves(PPO_METRICS)
    assert missing == []
    grpo, missing = curves(
        (*COMMON, *MEASURED, "actor/kl_loss", "reward/safety_weight"),
        advantage_estimator="grpo",
        mix={"name": "weighted_sum"},
    )
    assert missing == []
    assert grpo - usual == {
        "KL term of the loss (nats)",
        "Held-out prompts: mixed score as probability, mean",
        "Held-out prompts: KL, mean (nats per answer)",
    }
    assert usual - grpo == {
        "Gate: share of answers decided by safety",
        "Explained variance",
        "Value loss",
        "Clip fraction of values",
        "Critic gradient norm",
    }
    own = ("reward/safety_weight", "reward/lagrange_multiplier", "reward/cost/mean")
    lagrangian, missing = curves(
        (*COMMON, *CRITIC, *own),
        mix={"name": "lagrangian"},
        max_staleness=2,
        kl={"adaptive": {}},
    )
    assert missing == []
    assert usual - lagrangian == {"Gate: share of answers decided by safety"}
    assert lagrangian - usual == {
        "Weight of the safety score, mean",
        "Lagrange multiplier",
        "Cost: probability of being unsafe, mean",
        "KL weight",
        "KL of sampler and learner (nats)",
        "Effective sample size (share)",
        "Importance weight, mean",
        "Share of importance weights capped",
        "Age of rollouts (weight versions)",
    }


def test_a_metric_that_a_run_should_have_is_missed_by_name() -> None:
    (rewards, *others) = ppo_curves(
        "ppo", [{"stage": "ppo", "step": 1, "reward/safety/mean": 0.5}], PPOSettings()
    )
    assert [chart.title for chart in rewards.charts] == ["Scores of the two models, mean (logit)"]
    # Held-out prompts are measured only where there are any.
    assert rewards.missing == (
        "critic/score/mean",
        "reward/helpfulness/mean",
        "critic/rewards/mean",
    )
    missing = {name for group in others for name in group.missing}
    assert {"actor/entropy", "critic/vf_explained_var", "reward/decided_by_safety"} <= missing
    assert not {"actor/kl_loss", "actor/kl_coef", "reward/lagrange_multiplier"} & missing


def test_the_time_of_a_step_by_hand() -> None:
    rows = [
        {"stage": "ppo", "timing/sample": 3.0, "timing/update": 1.0, "timing/step": 5.0},
        {"stage": "ppo", "timing/sample": 1.0, "timing/update": 2.0, "timing/step": 3.0},
        {"stage": "sft", "timing/sample": 100.0},
        {"stage": "ppo-2", "timing/sample": 7.0},
    ]
    found = step_time("ppo", rows)
    assert found is not None
    assert [(p.name, p.median, p.total, p.share) for p in found.phases] == [
        ("sampling", 2.0, 4.0, 0.5),
        ("learning", 1.5, 3.0, 0.375),
    ]
    assert found.whole is not None
    assert (found.whole.median, found.whole.total) == (4.0, 8.0)
    assert not found.overlap
    (chart,) = found.charts
    assert "sampling 4\u00a0s, 50.0\u00a0%; learning 3\u00a0s, 37.5\u00a0%" in chart.description
    assert step_time("ppo", [{"stage": "ppo", "timing/sample": 3.0, "timing/step": 2.0}]).overlap
    assert step_time("ppo", [{"stage": "sft"}]) is None


def test_a_long_curve_is_drawn_with_its_moving_mean() -> None:
    values = [float(step % 2) for step in range(180)]
    series = {"loss": (list(range(180)), values)}
    long, plain = (line_chart("key", "Loss", series, None, noisy) for noisy in (True, False))
    # 180 steps, a window of 7: the mean of 0, 1, 0, ... is 3/7 or 4/7.
    assert [key.told for key in long.legend] == ["0 → 1", "strong line: mean of 7 steps"]
    assert [key.told for key in plain.legend] == ["0 → 1"]

    def heights(svg: str) -> list[set[str]]:
        lines = re.findall(r'd="(M [^"]*)"[^>]*stroke: var\(--series-1\)', svg)
        return [set(re.findall(r"[\d.]+ ([\d.]+)", line)) for line in lines]

    (raw,) = heights(plain.svg)
    assert len(raw) == 2
    faint, strong = heights(long.svg)
    assert faint == raw
    middle = [float(y) for y in strong]
    span = max(map(float, raw)) - min(map(float, raw))
    assert len(middle) == 2
    assert max(middle) - min(middle) == pytest.approx(span / 7, abs=0.02)
