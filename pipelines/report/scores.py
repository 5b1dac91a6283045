"""What the report shows of answers: scores before and after, and some of the answers themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayward.cluster.records.samples import Sample, last_user_turn, read_samples
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.types import AXES, Axis, Prompt
from rayward.pipelines.report.charts import histogram_chart
from rayward.pipelines.report.drawing import Chart
from rayward.pipelines.report.words import after, label, logit

_BINS = 30
_SHOWN = {"adversarial": 7, "borderline": 2, "benign": 3}
# In the order of the page.
_KINDS = ("adversarial", "benign", "borderline")

StageSamples = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True)
class Spread:
    """How one reward model's scores of one set of answers are spread. Logits."""

    answers: int
    mean: float
    low: float  # a tenth of the answers is below
    high: float  # a tenth of the answers is above


@dataclass(frozen=True)
class ScoreRow:
    """One reward model on one kind of prompt: its scores by stage; None where it gave none."""

    kind: str
    spreads: tuple[Spread | None, ...]


@dataclass(frozen=True)
class AxisScores:
    """Everything about the scores of one reward model."""

    axis: Axis
    rows: tuple[ScoreRow, ...]
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class SampleRow:
    """One prompt and the answers to it, by stage."""

    prompt: str
    tags: tuple[str, ...]
    answers: tuple[tuple[str, Sample], ...]


def kept_samples(run: RunDirectory, policies: Sequence[str]) -> dict[str, list[Sample]]:
    """Answers of policies to held-out prompts, where they are kept."""
    paths = {policy: run.samples_path(policy) for policy in policies}
    return {policy: read_samples(path) for policy, path in paths.items() if path.is_file()}


def score_distributions(samples: StageSamples) -> list[AxisScores]:
    """Scores by reward model and kind of prompt, for each stage; empty where nothing was scored."""
    found = []
    for axis in AXES:
        scores = {
            kind: {
                stage: np.array(
                    [
                        score
                        for sample in rows
                        if _kind(sample.prompt) == kind
                        and (score := _score(sample, axis)) is not None
                    ],
                    dtype=np.float64,
                )
                for stage, rows in samples.items()
            }
            for kind in _KINDS
        }
        kinds = [kind for kind in _KINDS if any(map(len, scores[kind].values()))]
        if not kinds:
            continue
        # The same bins everywhere, so that the pictures of a model can be compared.
        together = np.concatenate([part for kind in kinds for part in scores[kind].values()])
        edges = np.histogram_bin_edges(together, bins=_BINS)
        found.append(
            AxisScores(
                axis,
                tuple(ScoreRow(kind, tuple(map(_spread, scores[kind].values()))) for kind in kinds),
                tuple(_chart(axis, kind, scores[kind], edges) for kind in kinds),
            )
        )
    return found


def shown_answers(samples: StageSamples) -> list[SampleRow]:
    """Some prompts that all the stages answered, evenly spaced, so that nobody has picked them."""
    if not samples:
        return []
    by_prompt = {
        stage: {sample.prompt.id: sample for sample in rows} for stage, rows in samples.items()
    }
    last = list(by_prompt.values())[-1]
    shared = [
        sample for key, sample in last.items() if all(key in rows for rows in by_prompt.values())
    ]
    shared.sort(
        key=lambda sample: (
            sample.prompt.risk_category or "",
            sample.prompt.attack_vector or "",
            sample.prompt.id,
        )
    )
    chosen = [
        sample
        for kind, count in _SHOWN.items()
        for sample in _spaced([one for one in shared if _kind(one.prompt) == kind], count)
    ]
    return [
        SampleRow(
            last_user_turn(sample.prompt),
            _tags(sample.prompt),
            tuple((stage, rows[sample.prompt.id]) for stage, rows in by_prompt.items()),
        )
        for sample in chosen
    ]


def _kind(prompt: Prompt) -> str:
    return "adversarial" if prompt.adversarial else "borderline" if prompt.borderline else "benign"


def _score(sample: Sample, axis: Axis) -> float | None:
    return sample.safety if axis == "safety" else sample.helpfulness


def _spread(scores: np.ndarray) -> Spread | None:
    if not len(scores):
        return None
    low, high = np.quantile(scores, (0.1, 0.9))
    return Spread(len(scores), float(scores.mean()), float(low), float(high))


def _chart(axis: Axis, kind: str, scores: Mapping[str, np.ndarray], edges: np.ndarray) -> Chart:
    """Shares rather than counts: one stage may have answered more prompts than the other."""
    drawn = {stage: part for stage, part in scores.items() if len(part)}
    shares = {
        after(stage): (100 * np.histogram(part, edges)[0] / len(part)).tolist()
        for stage, part in drawn.items()
    }
    told = "; ".join(
        f"{after(stage)} {len(part)} answers, mean {logit(part.mean())}"
        for stage, part in drawn.items()
    )
    return histogram_chart(
        f"scores/{axis}/{kind}",
        f"{axis.capitalize()} score, {kind} prompts",
        edges.tolist(),
        shares,
        filled=list(shares)[-1],
        unit="answers (%)",
        told=told,
    )


def _spaced(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` of the samples, evenly spaced."""
    count = min(count, len(samples))
    return [samples[(2 * number + 1) * len(samples) // (2 * count)] for number in range(count)]


def _tags(prompt: Prompt) -> tuple[str, ...]:
    names = (prompt.risk_category, prompt.attack_vector) if prompt.adversarial else ()
    return (_kind(prompt), *(label(name) for name in names if name is not None))
