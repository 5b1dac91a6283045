"""Context distillation in the report: which answers were kept, and how much safer they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayward.cluster.records.distilled import DistillationReport, GroupGain


@dataclass(frozen=True)
class ContextDistillationReport:
    """Which distilled answers were kept, and how much safer they are."""

    stage: str
    result: Mapping[str, Any]
    found: DistillationReport
    groups: tuple[tuple[str, Mapping[str, GroupGain]], ...]


def context_distillation_report(stage: str, result: Mapping[str, Any]) -> ContextDistillationReport:
    """A finished stage of context distillation."""
    found = DistillationReport.model_validate(result["distillation"])
    groups = (("by risk category", found.by_category), ("by kind of preprompt", found.by_kind))
    return ContextDistillationReport(
        stage, result, found, tuple((title, own) for title, own in groups if own)
    )
