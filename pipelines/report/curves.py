"""The report's curves: which metrics are drawn, in which groups, and for which kinds of run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rayward.cluster.config.ppo import PPOSettings
from rayward.pipelines.report.charts import bar_chart, line_chart
from rayward.pipelines.report.drawing import Chart
from rayward.pipelines.report.words import label, percent, seconds

Metrics = Sequence[Mapping[str, Any]]

_SHARE = (0.0, 1.0)
_PHASES = {
    "sample": "sampling",
    "score": "scoring",
    "advantages": "advantages",
    "update": "learning",
    "sync": "weight sync",
    "validation": "held-out prompts",
}


def _always(ppo: PPOSettings) -> bool:
    return True


@dataclass(frozen=True)
class _Panel:
    """One chart: its title with the unit, and its metrics by what they are called in it."""

    title: str
    series: Mapping[str, str]
    when: Callable[[PPOSettings], bool] = _always  # else the metric is absent, or says nothing
    bounds: tuple[float, float] | None = None
    noisy: bool = True  # so that a long curve is easier to read as a moving mean
    optional: bool = False  # nothing is amiss where it was not recorded


@dataclass(frozen=True)
class CurveGroup:
    """Charts that belong together, and the metrics that should be there and are not."""

    name: str
    charts: tuple[Chart, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Phase:
    """One phase of a PPO step. Times in seconds."""

    name: str
    median: float
    total: float
    share: float | None  # of all steps; None where the steps' own time is not known


@dataclass(frozen=True)
class StepTime:
    """Where the time of PPO steps goes."""

    phases: tuple[Phase, ...]  # longest first, without the whole
    whole: Phase | None
    charts: tuple[Chart, ...]
    overlap: bool  # phases add up to more than the steps took


def _gated(ppo: PPOSettings) -> bool:
    return ppo.mix.name == "piecewise"


def _lagrangian(ppo: PPOSettings) -> bool:
    return ppo.mix.name == "lagrangian"


def _steered(ppo: PPOSettings) -> bool:
    return ppo.kl.adaptive is not None


def _measured(ppo: PPOSettings) -> bool:
    return ppo.early_stop is not None


def _critic(ppo: PPOSettings) -> bool:
    return ppo.has_critic


def _corrected(ppo: PPOSettings) -> bool:
    return ppo.corrects_sampler


_PPO: dict[str, tuple[_Panel, ...]] = {
    "Rewards": (
        _Panel("Mixed score, mean (logit)", {"score": "critic/score/mean"}),
        _Panel(
            "Scores of the two models, mean (logit)",
            {"safety": "reward/safety/mean", "helpfulness": "reward/helpfulness/mean"},
        ),
        _Panel("Reward learned from, mean (whitened)", {"reward": "critic/rewards/mean"}),
        _Panel(
            "Held-out prompts: mixed score as probability, mean",
            {"score": "validation/reward", "less KL": "validation/objective"},
            _measured,
            optional=True,
        ),
    ),
    "Distance from the reference": (
        _Panel("KL to the reference, mean (nats per token)", {"KL": "actor/reference_kl"}),
        _Panel(
            "Held-out prompts: KL, mean (nats per answer)",
            {"KL": "validation/sequence_kl"},
            _measured,
            optional=True,
        ),
        _Panel("KL weight", {"weight": "actor/kl_coef"}, _steered),
        _Panel("KL term of the loss (nats)", {"KL": "actor/kl_loss"}, lambda ppo: ppo.kl_in_loss),
    ),
    "Who decides": (
        _Panel(
            "Gate: share of answers decided by safety",
            {"share": "reward/decided_by_safety"},
            _gated,
            _SHARE,
        ),
        _Panel(
            "Weight of the safety score, mean",
            {"weight": "reward/safety_weight"},
            _lagrangian,
        ),
        _Panel("Lagrange multiplier", {"multiplier": "reward/lagrange_multiplier"}, _lagrangian),
        _Panel(
            "Cost: probability of being unsafe, mean", {"cost": "reward/cost/mean"}, _lagrangian
        ),
        _Panel(
            "Models disagree: share of scores of opposite sign",
            {"share": "reward/model_disagreement"},
            bounds=_SHARE,
        ),
    ),
    "Policy": (
        _Panel("Clip fraction of tokens", {"fraction": "actor/pg_clipfrac"}),
        _Panel("Entropy, mean (nats per token)", {"entropy": "actor/entropy"}),
        _Panel("KL of an update (nats per token)", {"KL": "actor/ppo_kl"}),
        _Panel("Policy loss", {"loss": "actor/pg_loss"}),
        _Panel("Policy gradient norm", {"norm": "actor/grad_norm"}),
    ),
    "Critic": (
        _Panel("Explained variance", {"variance": "critic/vf_explained_var"}, _critic),
        _Panel("Value loss", {"loss": "critic/vf_loss"}, _critic),
        _Panel("Clip fraction of values", {"fraction": "critic/vf_clipfrac"}, _critic),
        _Panel("Critic gradient norm", {"norm": "critic/grad_norm"}, _critic),
    ),
    "Answers": (
        _Panel("Length of answers, mean (tokens)", {"tokens": "response_length/mean"}),
        _Panel(
            "Share of answers cut before their end",
            {"share": "response_length/clip_ratio"},
            bounds=_SHARE,
        ),
    ),
    "Sampler against learner": (
        _Panel("Logprob difference, mean (nats)", {"mean": "rollout/logprob_diff_mean"}),
        _Panel("Logprob difference, largest (nats)", {"largest": "rollout/logprob_diff_max"}),
        _Panel("KL of sampler and learner (nats)", {"KL": "rollout/mismatch_kl"}, _corrected),
        _Panel(
            "Effective sample size (share)",
            {"share": "rollout/is_eff_sample_size"},
            _corrected,
            _SHARE,
        ),
        _Panel("Importance weight, mean", {"weight": "rollout/importance_weight_mean"}, _corrected),
        _Panel(
            "Share of importance weights capped",
            {"share": "rollout/importance_weight_capped"},
            _corrected,
        ),
        _Panel(
            "Age of rollouts (weight versions)",
            {"mean": "rollout/staleness_mean", "oldest": "rollout/staleness_max"},
            lambda ppo: ppo.max_staleness > 0,
        ),
    ),
    "Speed": (
        _Panel("Time of a step (s)", {"time": "timing/step"}),
        _Panel("Throughput (tokens/s)", {"tokens/s": "perf/throughput"}),
    ),
}
_SUPERVISED = (
    _Panel("Loss", {"loss": "train/loss"}),
    _Panel("Accuracy on the pairs of a step", {"share": "train/accuracy"}, optional=True),
    _Panel("Learning rate", {"learning rate": "train/learning_rate"}, noisy=False),
)


@dataclass(frozen=True)
class PPOReport:
    """One stage of PPO."""

    stage: str
    result: Mapping[str, Any] | None  # None where it was cut short
    groups: list[CurveGroup]
    time: StepTime | None


def ppo_report(
    stage: str, metrics: Metrics, ppo: PPOSettings, result: Mapping[str, Any] | None
) -> PPOReport:
    """A stage of PPO, finished or cut short."""
    return PPOReport(stage, result, ppo_curves(stage, metrics, ppo), step_time(stage, metrics))


def ppo_curves(stage: str, metrics: Metrics, ppo: PPOSettings) -> list[CurveGroup]:
    """The curves of a stage of PPO, without those that this kind of run does not have."""
    groups = [
        _group(stage, name, [panel for panel in panels if panel.when(ppo)], metrics)
        for name, panels in _PPO.items()
    ]
    return [group for group in groups if group.charts or group.missing]


def supervised_curves(stage: str, metrics: Metrics) -> CurveGroup:
    """The curves of a supervised stage, under the stage's name."""
    return _group(stage, stage, _SUPERVISED, metrics)


def step_time(stage: str, metrics: Metrics) -> StepTime | None:
    """The phases of the steps of one stage of PPO; None where no time was recorded."""
    prefix = "timing/"
    spent: dict[str, list[float]] = {}
    for row in metrics:
        for name in row if row["stage"] == stage else ():
            if name.startswith(prefix):
                spent.setdefault(name.removeprefix(prefix), []).append(row[name])
    steps = spent.pop("step", None)
    if not spent:
        return None
    whole = sum(steps) if steps else None
    found = [
        Phase(_PHASES.get(name, name), median(times), sum(times), whole and sum(times) / whole)
        for name, times in spent.items()
    ]
    phases = tuple(sorted(found, key=lambda phase: -phase.total))
    bars = [(phase.name, phase.total, _bar_text(phase)) for phase in phases]
    return StepTime(
        phases,
        Phase("whole step", median(steps), sum(steps), None) if steps else None,
        (bar_chart(f"time/{stage}", f"Where the steps of {label(stage)} spend time (s)", bars),),
        whole is not None and sum(phase.total for phase in phases) > whole,
    )


def _bar_text(phase: Phase) -> str:
    share = "" if phase.share is None else f", {percent(phase.share)}"
    return seconds(phase.total) + share


def _group(stage: str, name: str, panels: Sequence[_Panel], metrics: Metrics) -> CurveGroup:
    charts, missing = [], []
    for panel in panels:
        series = {}
        for text, metric in panel.series.items():
            rows = [row for row in metrics if row["stage"] == stage and metric in row]
            if rows:
                series[text] = ([row["step"] for row in rows], [row[metric] for row in rows])
            elif not panel.optional:
                missing.append(metric)
        if series:
            key = f"{stage}/{panel.title}"
            charts.append(line_chart(key, panel.title, series, panel.bounds, panel.noisy))
    return CurveGroup(name, tuple(charts), tuple(missing))
