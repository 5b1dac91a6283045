"""PPO in the report: its curves, by the kind of run, and where the time of its steps goes."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from rayward.cluster.config.mixes import LagrangianMixSettings, MixSettings, PiecewiseMixSettings
from rayward.cluster.config.ppo import PPOSettings
from rayward.pipelines.report.charts import bar_chart
from rayward.pipelines.report.curves import CurveGroup, Metrics, Panel, draw_group
from rayward.pipelines.report.drawing import Chart
from rayward.pipelines.report.words import label, percent, seconds

_SHARE = (0.0, 1.0)
_PHASES = {
    "sample": "sampling",
    "score": "scoring",
    "advantages": "advantages",
    "update": "learning",
    "sync": "weight sync",
    "validation": "held-out prompts",
}


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


_PPO: dict[str, tuple[Panel, ...]] = {
    "Rewards": (
        Panel("Mixed score, mean (logit)", {"score": "critic/score/mean"}),
        Panel(
            "Scores of the two models, mean (logit)",
            {"safety": "reward/safety/mean", "helpfulness": "reward/helpfulness/mean"},
        ),
        Panel("Reward learned from, mean (whitened)", {"reward": "critic/rewards/mean"}),
        Panel(
            "Held-out prompts: mixed score as probability, mean",
            {"score": "validation/reward", "less KL": "validation/objective"},
            _measured,
            optional=True,
        ),
    ),
    "Distance from the reference": (
        Panel("KL to the reference, mean (nats per token)", {"KL": "actor/reference_kl"}),
        Panel(
            "Held-out prompts: KL, mean (nats per answer)",
            {"KL": "validation/sequence_kl"},
            _measured,
            optional=True,
        ),
        Panel("KL weight", {"weight": "actor/kl_coef"}, _steered),
        Panel("KL term of the loss (nats)", {"KL": "actor/kl_loss"}, lambda ppo: ppo.kl_in_loss),
    ),
    "Who decides": (
        Panel(
            "Gate: share of answers decided by safety",
            {"share": "reward/decided_by_safety"},
            _gated,
            _SHARE,
        ),
        Panel(
            "Weight of the safety score, mean",
            {"weight": "reward/safety_weight"},
            _lagrangian,
        ),
        Panel("Lagrange multiplier", {"multiplier": "reward/lagrange_multiplier"}, _lagrangian),
        Panel("Cost: probability of being unsafe, mean", {"cost": "reward/cost/mean"}, _lagrangian),
        Panel(
            "Models disagree: share of scores of opposite sign",
            {"share": "reward/model_disagreement"},
            bounds=_SHARE,
        ),
    ),
    "Policy": (
        Panel("Clip fraction of tokens", {"fraction": "actor/pg_clipfrac"}),
        Panel("Entropy, mean (nats per token)", {"entropy": "actor/entropy"}),
        Panel("KL of an update (nats per token)", {"KL": "actor/ppo_kl"}),
        Panel("Policy loss", {"loss": "actor/pg_loss"}),
        Panel("Policy gradient norm", {"norm": "actor/grad_norm"}),
    ),
    "Critic": (
        Panel("Explained variance", {"variance": "critic/vf_explained_var"}, _critic),
        Panel("Value loss", {"loss": "critic/vf_loss"}, _critic),
        Panel("Clip fraction of values", {"fraction": "critic/vf_clipfrac"}, _critic),
        Panel("Critic gradient norm", {"norm": "critic/grad_norm"}, _critic),
    ),
    "Answers": (
        Panel("Length of answers, mean (tokens)", {"tokens": "response_length/mean"}),
        Panel(
            "Share of answers cut before their end",
            {"share": "response_length/clip_ratio"},
            bounds=_SHARE,
        ),
    ),
    "Sampler against learner": (
        Panel("Logprob difference, mean (nats)", {"mean": "rollout/logprob_diff_mean"}),
        Panel("Logprob difference, largest (nats)", {"largest": "rollout/logprob_diff_max"}),
        Panel("KL of sampler and learner (nats)", {"KL": "rollout/mismatch_kl"}, _corrected),
        Panel(
            "Effective sample size (share)",
            {"share": "rollout/is_eff_sample_size"},
            _corrected,
            _SHARE,
        ),
        Panel("Importance weight, mean", {"weight": "rollout/importance_weight_mean"}, _corrected),
        Panel(
            "Share of importance weights capped",
            {"share": "rollout/importance_weight_capped"},
            _corrected,
        ),
        Panel(
            "Age of rollouts (weight versions)",
            {"mean": "rollout/staleness_mean", "oldest": "rollout/staleness_max"},
            lambda ppo: ppo.max_staleness > 0,
        ),
    ),
    "Speed": (
        Panel("Time of a step (s)", {"time": "timing/step"}),
        Panel("Throughput (tokens/s)", {"tokens/s": "perf/throughput"}),
    ),
}


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
        draw_group(stage, name, [panel for panel in panels if panel.when(ppo)], metrics)
        for name, panels in _PPO.items()
    ]
    return [group for group in groups if group.charts or group.missing]


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


def kind_of_run(ppo: PPOSettings) -> dict[str, str]:
    """What sort of PPO this was, by the settings that change what its curves mean."""
    kl = ppo.kl
    steered = "fixed"
    if kl.adaptive is not None:
        steered = f"at first, steered towards {kl.adaptive.target:g} nats an answer"
    where = "in the loss" if ppo.kl_in_loss else f"in the token rewards, estimator {kl.estimator}"
    critic = "with a critic"
    if not ppo.has_critic:
        critic = f"no critic, {ppo.group_size} answers to a prompt compared"
    rollouts = "synchronous"
    if ppo.max_staleness:
        rollouts = f"asynchronous, at most {_versions(ppo.max_staleness)} old"
    return {
        "reward mix": f"{ppo.mix.name} ({_rule(ppo.mix)})",
        "advantage estimator": f"{ppo.advantage_estimator} ({critic})",
        "rollouts": f"{rollouts} (max_staleness {ppo.max_staleness})",
        "KL weight": f"{kl.beta:g} {steered}, {where}",
        "batch": f"{ppo.batch_size} answers a step, {ppo.minibatch_size} an update",
    }


def _rule(mix: MixSettings) -> str:
    if isinstance(mix, PiecewiseMixSettings):
        return (
            "the safety model decides on tagged prompts and below a probability of "
            f"{mix.threshold:g}, else the helpfulness model"
        )
    if isinstance(mix, LagrangianMixSettings):
        return f"helpfulness, with the mean cost held at {mix.cost_limit:g} or less"
    return f"safety {mix.safety_weight:g}, helpfulness {mix.helpfulness_weight:g}"


def _versions(count: int) -> str:
    return f"{count} weight version{'s' if count > 1 else ''}"
