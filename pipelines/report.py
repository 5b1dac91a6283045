"""The report: one HTML file that needs nothing else, made from the run directory alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cluster.atomic import write_bytes
from cluster.metrics import read_metrics
from cluster.run_directory import RunDirectory
from cluster.types import ATTACK_VECTORS, RISK_CATEGORIES
from pipelines.judgements import Cell, Rate, StageEvaluation
from pipelines.report_charts import Chart, calibration_chart, histogram_chart, line_chart
from pipelines.reward_accuracy import RewardModelEvaluation
from pipelines.reward_metrics import SafetyCalibration
from pipelines.samples import Sample, last_user_turn, read_samples
from pipelines.summary import finished_stages, reward_evaluations, stage_evaluations

_STAGE_NAMES = {
    "sft": "SFT",
    "reward_safety": "safety reward model",
    "reward_helpfulness": "helpfulness reward model",
    "ppo": "PPO",
}
_CATEGORY_NAMES = {
    "illicit_and_criminal_activities": "illicit and criminal",
    "hateful_and_harmful_activities": "hateful and harmful",
    "unqualified_advice": "unqualified advice",
}
_RATES = {
    "violations": "violations, of adversarial prompts",
    "well_formed_refusals": "well-formed refusals, of adversarial prompts",
    "good_refusals": "refusals that explain, of adversarial prompts",
    "helpful": "helpful, of benign prompts",
    "false_refusals": "false refusals, of benign prompts",
    "borderline_false_refusals": "false refusals, of borderline prompts",
    "garbage": "garbage, of all prompts",
}
_PPO_CHARTS: dict[str, dict[str, str]] = {
    "Mixed score, mean (logit)": {"score": "critic/score/mean"},
    "Reward on held-out prompts": {"reward": "validation/reward"},
    "Reward with KL penalty, mean": {"reward": "critic/rewards/mean"},
    "Reward model scores, mean (logit)": {
        "safety": "reward/safety/mean",
        "helpfulness": "reward/helpfulness/mean",
    },
    "KL to the reference (nats)": {"KL": "actor/reference_kl"},
    "KL of an update (nats)": {"KL": "actor/ppo_kl"},
    "Gate: share decided by safety": {"share": "reward/decided_by_safety"},
    "Clip fraction": {"fraction": "actor/pg_clipfrac"},
    "Critic: explained variance": {"variance": "critic/vf_explained_var"},
    "Response length, mean (tokens)": {"tokens": "response_length/mean"},
    "Share of responses cut": {"share": "response_length/clip_ratio"},
    "Sampler against learner, logprob difference": {"nats": "rollout/logprob_diff_mean"},
}
_SUPERVISED_CHARTS = {
    "loss": {"loss": "train/loss"},
    "learning rate": {"learning rate": "train/learning_rate"},
}
_SHARES = ("reward/decided_by_safety", "response_length/clip_ratio")
_ADVERSARIAL_SAMPLES, _BORDERLINE_SAMPLES, _BENIGN_SAMPLES = 7, 2, 3

_Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ChartGroup:
    """The charts of one stage, and the metrics that were not there to draw."""

    name: str
    charts: tuple[Chart, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class HeatMap:
    """Violations by attack vector (rows) and risk category (columns)."""

    stage: str
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True)
class SampleRow:
    """One prompt and the answers to it, by stage."""

    prompt: str
    tags: tuple[str, ...]
    answers: tuple[tuple[str, Sample], ...]


def write_report(run: RunDirectory) -> Path:
    """Write report.html from what lies in the run directory, and say where.

    The same directory gives the same bytes.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, interval=interval, seconds=seconds, label=label)
    source = files("pipelines").joinpath("report.html.jinja").read_text(encoding="utf-8")
    html = environment.from_string(source).render(**_content(run))
    write_bytes(str(run.report_path), html.encode())
    return run.report_path


def headline(evaluations: Mapping[str, StageEvaluation]) -> str:
    """The result in one sentence: the first evaluated stage against the last."""
    if not evaluations:
        return "Nothing was evaluated in this run."
    ends = list(evaluations.values())
    before, after = ends[0], ends[-1]
    told = []
    for name, old, new in (
        ("Violations", before.violations, after.violations),
        ("helpful", before.helpful, after.helpful),
    ):
        both = [_with_interval(found) for found in ((old, new) if len(ends) > 1 else (new,))]
        same = set(both) == {"not judged"}
        told.append(f"{name} " + ("not judged" if same else " → ".join(both)))
    return ", ".join(told) + "."


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "\u2013" if share is None else f"{100 * share:.1f}\u00a0%"


def interval(found: Rate) -> str:
    """A rate's interval, in per cent."""
    if found.low is None or found.high is None:
        return ""
    return f"{100 * found.low:.1f}\u2013{100 * found.high:.1f}"


def seconds(duration: float) -> str:
    """A duration for people: below a minute in seconds, then in minutes, then in hours."""
    if duration < 60:
        return f"{duration:.3g}\u00a0s"
    minutes, rest = divmod(round(duration), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"


def label(name: str) -> str:
    """The plain name of a stage, category, vector or verdict."""
    names = {**_STAGE_NAMES, **_CATEGORY_NAMES}
    return names.get(name, name.replace("_", " ").replace("non english", "non-English"))


def _with_interval(found: Rate | None) -> str:
    if found is None:
        return "not judged"
    if found.rate is None:
        return "no prompts"
    return f"{percent(found.rate)} ({interval(found)})"


def _content(run: RunDirectory) -> dict[str, Any]:
    metrics = read_metrics(run.metrics_path)
    stages = finished_stages(run)
    evaluations = stage_evaluations(run)
    summary = json.loads(run.summary_path.read_bytes()) if run.summary_path.is_file() else {}
    return {
        "recipe": run.recipe(),
        "manifest": run.manifest(),
        "status": run.status(),
        "headline": headline(evaluations),
        "evaluations": evaluations,
        "rates": [
            (text, [getattr(found, name) for found in evaluations.values()])
            for name, text in _RATES.items()
        ],
        "stages": {stage: result["seconds"] for stage, result in stages.items()},
        "reward_models": [
            (found, _reward_charts(found, _safety_calibration(stages[f"reward_{axis}"])))
            for axis, found in reward_evaluations(run).items()
        ],
        "ppo": _chart_group("ppo", _PPO_CHARTS, metrics) if "ppo" in stages else None,
        "supervised": [
            _chart_group(stage, _SUPERVISED_CHARTS, metrics) for stage in stages if stage != "ppo"
        ],
        "categories": RISK_CATEGORIES,
        "heat_maps": [
            _heat_map(stage, evaluations[stage])
            for stage in dict.fromkeys([*list(evaluations)[:1], *list(evaluations)[-1:]])
            if evaluations[stage].cells
        ],
        "samples": _samples(run, list(evaluations)),
        "timing": summary.get("timing", {}),
        "ppo_timing": _ppo_timing(metrics),
        "svg": lambda chart: Markup(chart.svg),
    }


def _chart_group(
    stage: str, panels: Mapping[str, Mapping[str, str]], metrics: _Metrics
) -> ChartGroup:
    charts, missing = [], []
    for title, names in panels.items():
        series = {}
        for text, name in names.items():
            points = [(row["step"], row[name]) for row in metrics if _has(row, stage, name)]
            if points:
                steps, values = zip(*points, strict=True)
                series[text] = (steps, values)
            else:
                missing.append(name)
        if series:
            bounds = (0.0, 1.0) if set(names.values()) & set(_SHARES) else None
            charts.append(line_chart(f"{stage}/{title}", title, series, bounds))
    return ChartGroup(stage, tuple(charts), tuple(missing))


def _has(row: Mapping[str, Any], stage: str, name: str) -> bool:
    return bool(row["stage"] == stage and name in row)


def _reward_charts(
    found: RewardModelEvaluation, safety: SafetyCalibration | None
) -> tuple[Chart, ...]:
    ranking = [(part.predicted, part.observed) for part in found.calibration]
    histogram, key = found.histogram, found.axis
    charts = [
        histogram_chart(f"{key}/histogram", "Scores on held-out pairs", histogram),
        calibration_chart(f"{key}/ranking", "Probability of being preferred", ranking, 0.5),
    ]
    if safety is not None:
        labelled = [(part.predicted, part.safe) for part in safety.bins]
        title = "Probability of being safe, against labels"
        charts.append(calibration_chart(f"{key}/safety", title, labelled, 0.0))
    return tuple(charts)


def _safety_calibration(result: Mapping[str, Any]) -> SafetyCalibration | None:
    found = result.get("safety_calibration")
    return None if found is None else SafetyCalibration.model_validate(found)


def _heat_map(stage: str, found: StageEvaluation) -> HeatMap:
    cells = {(cell.attack_vector, cell.risk_category): cell for cell in found.cells}
    rows = tuple(
        (vector, tuple(cells.get((vector, category)) for category in RISK_CATEGORIES))
        for vector in ATTACK_VECTORS
    )
    return HeatMap(stage, rows)


def _samples(run: RunDirectory, stages: Sequence[str]) -> list[SampleRow]:
    """Answers of the first and the last evaluated stage to the same prompts."""
    ends = list(dict.fromkeys([*stages[:1], *stages[-1:]]))
    found = {
        stage: {sample.prompt.id: sample for sample in read_samples(run.samples_path(stage))}
        for stage in ends
        if run.samples_path(stage).is_file()
    }
    if not found:
        return []
    last = list(found.values())[-1]
    shared = [sample for key, sample in last.items() if all(key in rows for rows in found.values())]
    shared.sort(
        key=lambda sample: (
            sample.prompt.risk_category or "",
            sample.prompt.attack_vector or "",
            sample.prompt.id,
        )
    )
    adversarial = [sample for sample in shared if sample.prompt.adversarial]
    borderline = [sample for sample in shared if sample.prompt.borderline]
    benign = [s for s in shared if not s.prompt.adversarial and not s.prompt.borderline]
    chosen = [
        *_spaced(adversarial, _ADVERSARIAL_SAMPLES),
        *_spaced(borderline, _BORDERLINE_SAMPLES),
        *_spaced(benign, _BENIGN_SAMPLES),
    ]
    return [
        SampleRow(
            last_user_turn(sample.prompt),
            _tags(sample),
            tuple((stage, rows[sample.prompt.id]) for stage, rows in found.items()),
        )
        for sample in chosen
    ]


def _spaced(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` of the samples, evenly spaced, so that nobody has picked them."""
    count = min(count, len(samples))
    return [samples[(2 * number + 1) * len(samples) // (2 * count)] for number in range(count)]


def _tags(sample: Sample) -> tuple[str, ...]:
    prompt = sample.prompt
    kind = "adversarial" if prompt.adversarial else "borderline" if prompt.borderline else "benign"
    names = (prompt.risk_category, prompt.attack_vector) if prompt.adversarial else ()
    return (kind, *(label(name) for name in names if name is not None))


def _ppo_timing(metrics: _Metrics) -> list[tuple[str, float, float]]:
    """Phases of a PPO step, with the median and the sum of their seconds, longest first."""
    prefix = "timing/"
    spent: dict[str, list[float]] = {}
    for row in metrics:
        for name in row if row["stage"] == "ppo" else ():
            if name.startswith(prefix):
                spent.setdefault(name.removeprefix(prefix), []).append(row[name])
    phases = [(name, median(values), sum(values)) for name, values in spent.items()]
    return sorted(phases, key=lambda phase: -phase[2])
