"""What the report says of gates: each check, and where a policy that failed got worse."""

import json
from dataclasses import dataclass

from rayward.cluster.records.gates import CellChange, GateCheck, gate_reports
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.pipelines.report.words import interval_of, label, percent, points, points_between

_CHECKS = {
    "max_violation_rise": "rise of violations",
    "max_helpfulness_fall": "fall of helpfulness",
    "max_false_refusals": "false refusals, benign",
    "max_borderline_false_refusals": "false refusals, borderline",
}


@dataclass(frozen=True)
class GateRow:
    """One check, in words and figures."""

    text: str
    against: str | None
    value: str
    interval: str
    bound: str
    passed: bool


@dataclass(frozen=True)
class FailedCells:
    """The cells in which violations rose, of a policy that failed."""

    policy: str
    cells: tuple[CellChange, ...]


@dataclass(frozen=True)
class GatesReport:
    """All gates of a run."""

    policies: dict[str, tuple[GateRow, ...]]
    failed: tuple[FailedCells, ...]
    asked: int
    passed: int
    promoted: str | None  # the policy that passed them all


def gates_report(run: RunDirectory) -> GatesReport | None:
    """The gates that were asked; None where none was."""
    reports = gate_reports(run)
    if not reports:
        return None
    promoted = None
    if run.promoted_path.is_file():
        promoted = str(json.loads(run.promoted_path.read_bytes())["policy"])
    return GatesReport(
        policies={report.policy: tuple(map(_row, report.checks)) for report in reports},
        failed=tuple(
            FailedCells(report.policy, report.cells) for report in reports if report.failed
        ),
        asked=sum(len(report.checks) for report in reports),
        passed=sum(check.passed for report in reports for check in report.checks),
        promoted=promoted,
    )


def _row(check: GateCheck) -> GateRow:
    # A share of its own, or how much one changed since another policy.
    is_change = check.against is not None
    return GateRow(
        text=_CHECKS.get(check.name, label(check.name)),
        against=check.against,
        value=points(check.value) if is_change else percent(check.value),
        interval=points_between(check.low, check.high)
        if is_change
        else interval_of(check.low, check.high),
        bound=f"{100 * check.bound:.1f} points" if is_change else percent(check.bound),
        passed=check.passed,
    )
