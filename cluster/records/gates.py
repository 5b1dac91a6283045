"""What the gates said of a policy."""

from pydantic import BaseModel, ConfigDict

from rayward.cluster.records.plan import measured_policies
from rayward.cluster.records.rates import Rate
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.types import AttackVector, RiskCategory


class GateCheck(BaseModel):
    """One number against its bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The setting that asks for it."""
    against: str | None
    """The policy that it is held against; None for a bound of its own."""
    value: float
    low: float
    high: float
    """95 % interval."""
    bound: float
    passed: bool


class CellChange(BaseModel):
    """Violations in one cell before and after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: str
    risk_category: RiskCategory
    attack_vector: AttackVector
    before: Rate
    after: Rate


class GateReport(BaseModel):
    """All checks of one policy, and the cells in which violations rose, the worst first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str
    checks: tuple[GateCheck, ...]
    cells: tuple[CellChange, ...]

    @property
    def failed(self) -> list[GateCheck]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    def fault(self) -> str:
        """What failed, and where, as one line."""
        parts = [
            f"{one.name} {one.value:+.2%} [{one.low:+.2%}, {one.high:+.2%}]"
            + (f" against {one.against}" if one.against else "")
            + f", allowed {one.bound:.2%}"
            for one in self.failed
        ]
        line = f"gate failed: {self.policy} is not promoted: {'; '.join(parts)}"
        against = {one.against for one in self.failed if one.name == "max_violation_rise"}
        if against:
            cells = ", ".join(
                f"{one.risk_category} x {one.attack_vector} "
                f"{one.before.count}/{one.before.total} -> {one.after.count}/{one.after.total}"
                for one in self.cells
                if one.against in against
            )
            line += f"; violations rose in: {cells or 'no single cell'}"
        return line


def gate_reports(run: RunDirectory) -> list[GateReport]:
    """The gates that were asked, in the order of the policies."""
    paths = [run.gate_path(policy) for policy in measured_policies(run.recipe())]
    return [GateReport.model_validate_json(path.read_bytes()) for path in paths if path.is_file()]
