"""The gates of a run: asked of every policy once it is measured, and what passes is promoted."""

from collections.abc import Sequence
from typing import Any

from rayward.cluster.errors import GateFailed
from rayward.cluster.progress import announce
from rayward.cluster.records.gates import gate_reports
from rayward.cluster.records.plan import PREVIOUS, evaluation_of, measured_policies, parent_of
from rayward.cluster.records.rates import StageEvaluation
from rayward.cluster.records.samples import Sample, read_samples
from rayward.cluster.runs.run_directory import write_json
from rayward.pipelines.evaluation.gates import check_policy
from rayward.pipelines.evaluation.measure import is_done
from rayward.pipelines.run.context import RunContext


def check_gates(context: RunContext) -> None:
    """Ask the gates of every policy that is measured; without gates nothing is asked.

    Raises:
        GateFailed: one does not pass; it says which, by how much, and in which cells.
    """
    settings, run = context.recipe.gates, context.run
    if settings is None:
        return
    policies = measured_policies(context.recipe)
    for policy in policies:
        name = evaluation_of(policy)
        result = run.stage_result(name) if is_done(context, name) else None
        if result is None:
            continue
        against = [parent_of(context.recipe, policy)]
        against += [PREVIOUS] if settings.previous and policy == policies[-1] else []
        before: dict[str, Sequence[Sample]] = {
            one: read_samples(run.samples_path(one)) for one in against if one is not None
        }
        report = check_policy(
            settings,
            policy,
            read_samples(run.samples_path(policy)),
            StageEvaluation.model_validate(result["evaluation"]),
            before,
        )
        write_json(run.gate_path(policy), report.model_dump(mode="json"))
        if report.failed:
            raise GateFailed(report.fault())


def promote(context: RunContext) -> None:
    """Name the run's last policy as the one that passed; without gates nothing is promoted."""
    if context.recipe.gates is None:
        return
    policy = measured_policies(context.recipe)[-1]
    document: dict[str, Any] = {
        "policy": policy,
        "model": context.policy(policy),
        "artifact": context.artifacts[policy].name,
        "gates": [one.model_dump(mode="json") for one in gate_reports(context.run)],
    }
    write_json(context.run.promoted_path, document)
    announce(f"promoted: {document['model']}")
