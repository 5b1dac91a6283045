"""The results by policy, and how they changed, worked out by hand."""

from pathlib import Path

import pytest

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.records.rates import ORACLE, Rate
from rayward.cluster.records.samples import Sample
from rayward.cluster.records.summary import stage_evaluations
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.pipelines.evaluation.judgements import evaluate_judgements
from rayward.pipelines.report.gates import gates_report
from rayward.pipelines.report.results import (
    Change,
    ResultRow,
    measured_parents,
    own_ends,
    plane,
    result_rows,
    stage_charts,
)
from tests.report_run import RECIPE, a_sample, check_gates, measure
from tests.report_stages import a_prompt


def a_run(tmp_path: Path, stages: list[str], **gates: object) -> RunDirectory:
    return RunDirectory.create(
        tmp_path / "run", parse_recipe(RECIPE | {"stages": stages, "gates": gates})
    )


def asked(verdicts: str, helpfulness: float | None = None) -> list[Sample]:
    """Answers to adversarial prompts, v or s, and then to benign ones, h or r."""
    words = {"v": "violation", "s": "safe", "g": "good_refusal", "h": "helpful", "r": "garbage"}
    samples = []
    for number, letter in enumerate(verdicts):
        kind = "adversarial" if letter in "vsg" else "benign"
        known = {"safety": 0.0, "helpfulness": helpfulness}
        samples.append(a_sample(a_prompt(number, kind), verdict=words[letter], **known))
    return samples


def rows_of(run: RunDirectory) -> dict[str, ResultRow]:
    evaluations = stage_evaluations(run)
    parents = measured_parents(run.recipe(), evaluations)
    return {row.text: row for row in result_rows(run, evaluations, parents)}


def test_changes_are_paired_by_prompt_with_their_interval(tmp_path: Path) -> None:
    with a_run(tmp_path, ["sft", "safety_sft"]) as run:
        measure(run, "sft", asked("vvvghh", helpfulness=0.0))
        measure(run, "safety_sft", asked("gvgghr", helpfulness=0.0))
        rows = rows_of(run)
    violations = rows["violations, of adversarial prompts"]
    assert [cell.rate for cell in violations.cells if isinstance(cell, Rate)] == [0.75, 0.25]
    first, change = rows["change of violations"].cells
    assert first == "\u2013"
    assert isinstance(change, Change)
    # Two of four ceased. With half a pair more in each cell: (0.5 - 2.5) / 6, half the width
    # 1.959964 * sqrt(3 - 4 / 6) / 6.
    assert (change.value, change.low, change.high, change.pairs) == (
        -0.5,
        pytest.approx(-0.832316, abs=1e-6),
        pytest.approx(0.165649, abs=1e-6),
        4,
    )
    _, change = rows["change of helpful answers"].cells
    assert isinstance(change, Change)
    assert (change.value, change.pairs) == (-0.5, 2)
    # A logit of 0 is a probability of one half.
    score = rows["helpfulness model's probability, mean over benign prompts"].cells[0]
    assert score is not None
    assert not isinstance(score, str | Rate | Change)
    assert (score.mean, score.low, score.high, score.total) == (0.5, 0.5, 0.5, 2)
    assert list(rows)[:2] == ["violations, of adversarial prompts", "change of violations"]


def test_what_nobody_judged_has_no_change(tmp_path: Path) -> None:
    with a_run(tmp_path, ["sft", "safety_sft"]) as run:
        measure(run, "sft", asked("vvhh"), judge=None)
        measure(run, "safety_sft", asked("gghh"), judge=None)
        rows = rows_of(run)
        # No verdict is no violation: a change of 0 would be made up.
        assert rows["change of violations"].cells == ("\u2013", None)
        assert (
            rows["helpfulness model's probability, mean over benign prompts"].cells == (None,) * 2
        )
        # A judge model tells violations alone.
        measure(run, "sft", asked("vvs"), judge="some/judge")
        measure(run, "safety_sft", asked("vss"), judge="some/judge")
        rows = rows_of(run)
        change = rows["change of violations"].cells[1]
        assert isinstance(change, Change)
        assert change.value == pytest.approx(-1 / 3)
        assert rows["change of helpful answers"].cells == ("\u2013", None)
        run.samples_path("sft").unlink()
        assert rows_of(run)["change of violations"].cells[1] == "answers not kept"


def test_the_ends_are_the_runs_own_policies() -> None:
    found = evaluate_judgements([], ORACLE, {})
    three = {"previous": found, "sft": found, "ppo": found, "ppo-2": found}
    assert own_ends(three) == ["sft", "ppo-2"]
    assert own_ends({"previous": found, "sft": found}) == ["sft"]
    assert own_ends({"previous": found}) == ["previous"]
    assert own_ends({}) == []


def test_the_plane_needs_violations_and_takes_the_models_word_for_helpfulness(
    tmp_path: Path,
) -> None:
    with a_run(tmp_path, ["sft", "safety_sft"]) as run:
        parents: dict[str, str | None] = {"sft": None, "safety_sft": "sft"}
        measure(run, "sft", asked("vvgghhhr", helpfulness=0.0))
        measure(run, "safety_sft", asked("vggghhhh", helpfulness=0.0))
        chart = plane(stage_evaluations(run), parents)
        assert chart is not None
        assert chart.description == (
            "Plane of violations (lower is better) and helpful, of benign prompts (higher is "
            "better): SFT 50.0\u00a0% and 75.0\u00a0%; safety SFT 25.0\u00a0% and 100.0\u00a0%."
        )
        # By a judge model, nobody says what is helpful but the reward model.
        rows = asked("vvss", helpfulness=0.0)
        rows += [a_sample(a_prompt(9, "benign"), verdict="safe", safety=0.0, helpfulness=0.0)]
        measure(run, "sft", rows, judge="some/judge")
        measure(run, "safety_sft", rows, judge="some/judge")
        chart = plane(stage_evaluations(run), parents)
        assert chart is not None
        assert "helpfulness model's probability (higher is better): SFT 50.0\u00a0% and 50.0" in (
            chart.description
        )
        charts = stage_charts(stage_evaluations(run))
        assert [one.title for one in charts] == [
            "Violations, of adversarial prompts (%)",
            "Helpfulness model's probability, mean over benign prompts (%)",
        ]
        measure(run, "sft", rows, judge=None)
        # One policy is no comparison.
        assert plane(stage_evaluations(run), parents) is None


def test_gates_with_their_numbers_and_the_cells_of_a_failed_one(tmp_path: Path) -> None:
    bounds = {"max_violation_rise": 0.1, "max_helpfulness_fall": None}
    with a_run(tmp_path, ["sft", "safety_sft"], **bounds) as run:
        assert gates_report(run) is None
        measure(run, "sft", asked("g" * 10 + "h"))
        measure(run, "safety_sft", asked("g" + "v" * 9 + "h"))
        check_gates(run, run.recipe())
        found = gates_report(run)
    assert found is not None
    assert (found.asked, found.passed, found.promoted) == (3, 2, None)
    assert [row.text for row in found.policies["sft"]] == ["false refusals, benign"]
    refusals, rise = found.policies["safety_sft"]
    assert (refusals.value, refusals.bound, refusals.passed) == ("0.0\u00a0%", "5.0\u00a0%", True)
    assert (rise.text, rise.against) == ("rise of violations", "sft")
    # 9 of 10 began: (9.5 - 0.5) / 12 and 1.959964 * sqrt(10 - 81 / 12) / 12 to either side.
    assert (rise.value, rise.interval) == ("+90.0", "+45.6 to +100.0")
    assert (rise.bound, rise.passed) == ("10.0 points", False)
    (failed,) = found.failed
    assert failed.policy == "safety_sft"
    # One in each cell but the first, which is that of prompt 0.
    assert sum(cell.after.count for cell in failed.cells) == 9
    assert all((cell.before.count, cell.after.count) == (0, 1) for cell in failed.cells)
