"""The report: one HTML file that needs nothing else, made from the run directory alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rayward.cluster.atomic import write_bytes
from rayward.cluster.records.plan import evaluation_of
from rayward.cluster.records.reading import RunReading, read
from rayward.cluster.records.summary import (
    measurements,
    stage_evaluations,
)
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.types import RISK_CATEGORIES
from rayward.pipelines.report import words as report_words
from rayward.pipelines.report.benchmarks import benchmarks_report
from rayward.pipelines.report.curves import supervised_curves
from rayward.pipelines.report.gates import gates_report
from rayward.pipelines.report.results import (
    heat_map,
    measured_parents,
    own_ends,
    plane,
    result_rows,
    stage_charts,
)
from rayward.pipelines.report.scores import kept_samples, score_distributions, shown_answers
from rayward.pipelines.stage import ReportSection, stage_of

_FILTERS = (
    "after",
    "interval",
    "label",
    "logit",
    "moment",
    "number",
    "percent",
    "points",
    "points_between",
    "seconds",
    "sentence",
)

_PIPELINES = "rayward.pipelines"

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class StageTime:
    """How long a stage and the measurement of its policy took, in seconds."""

    name: str
    stage: float | None  # None for a policy that no stage made
    measuring: float | None  # None where no policy was measured
    taken_from: str | None  # the run that did the stage, where it was another one


def write_report(run: RunDirectory) -> Path:
    """Write report.html from what lies in the run directory, and say where.

    The same directory gives the same bytes.
    """
    environment = Environment(
        # Its own templates, and those of stages by FOLDER/FILE.
        loader=ChoiceLoader(
            [PackageLoader(f"{_PIPELINES}.report", ""), PackageLoader(_PIPELINES, "")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in _FILTERS:
        environment.filters[name] = getattr(report_words, name)
    html = environment.get_template("report.html.jinja").render(**_content(run))
    write_bytes(str(run.report_path), html.encode())
    return run.report_path


def _content(run: RunDirectory) -> dict[str, Any]:
    reading = read(run)
    recipe, stages = reading.recipe, reading.stages
    evaluations, measured = stage_evaluations(run), measurements(run)
    parents = measured_parents(recipe, evaluations)
    ends = own_ends(evaluations)
    samples = kept_samples(run, ends)
    summary = json.loads(run.summary_path.read_bytes()) if run.summary_path.is_file() else {}
    return {
        "recipe": recipe,
        "stages_told": report_words.stages_told(recipe),
        "manifest": run.manifest(),
        "status": run.status(),
        "headline": report_words.headline([evaluations[policy] for policy in ends]),
        "ends": ends,
        "evaluations": evaluations,
        "parents": parents,
        "rows": result_rows(run, evaluations, parents),
        "stage_charts": stage_charts(evaluations) if evaluations else [],
        "plane": plane(evaluations, parents),
        "gates": gates_report(run),
        "spent": _spent(stages, measured),
        "categories": RISK_CATEGORIES,
        "heat_maps": [
            heat_map(report_words.sentence(report_words.after(policy)), evaluations[policy].cells)
            for policy in ends
            if evaluations[policy].cells
        ],
        "benchmarks": benchmarks_report(measured),
        "sampled": list(samples),
        "scores": score_distributions(samples),
        "samples": shown_answers(samples),
        **_method(reading),
        "timing": _rest(summary.get("timing", {}), {*stages, *map(evaluation_of, measured)}),
        "svg": lambda chart: Markup(chart.svg),
    }


def _spent(stages: Results, measured: Results) -> list[StageTime]:
    """The policies that no stage made, then the stages in order."""
    rows = []
    for name in [*(policy for policy in measured if policy not in stages), *stages]:
        made, found = stages.get(name), measured.get(name)
        taken_from = None if made is None else made.get("taken_from")
        rows.append(
            StageTime(
                name,
                None if made is None else made["seconds"],
                None if found is None else found["seconds"],
                taken_from and Path(taken_from).name,
            )
        )
    return rows


def _rest(timing: Mapping[str, float], told: set[str]) -> dict[str, float]:
    """The phases of a run that are no stages, whose own times are told already."""
    return {name: spent for name, spent in timing.items() if not told.issuperset(name.split(" + "))}


def _method(reading: RunReading) -> dict[str, Any]:
    """What each kind of stage did, in the order of the plan."""
    names = dict.fromkeys(one.name for one in reading.plan)
    sections: dict[str, ReportSection] = {}
    for name in names:
        planned = [one for one in reading.plan if one.name == name]
        found = stage_of(name).report(reading, planned)
        if found is not None and found.entries:
            before = sections.get(found.id)
            entries = found.entries if before is None else (*before.entries, *found.entries)
            sections[found.id] = replace(found, entries=entries)
    fitted = [one for one in reading.plan if stage_of(one.name).fits(reading.recipe)]
    return {
        "sections": list(sections.values()),
        "step_times": [entry for section in sections.values() for entry in section.step_times],
        "supervised": [supervised_curves(one.id, reading.metrics) for one in reading.begun(fitted)],
    }
