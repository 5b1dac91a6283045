"""A run's results in short: summary.json.

A stage's result, as `RunDirectory.complete_stage` takes it, has `seconds` beside its own keys.
A reward model's has `evaluation`, a RewardModelEvaluation or None, and may have
`safety_calibration`, a SafetyCalibration. That of PPO has those of `PPOResult`. A measurement's,
under `evaluation/POLICY`, has `evaluation`, a StageEvaluation.
"""

from collections.abc import Mapping
from typing import Any

from rayward.cluster.records.benchmark_results import ToxigenResult, TruthfulQAResult
from rayward.cluster.records.plan import (
    PREVIOUS,
    PlannedStage,
    evaluation_of,
    make_plan,
    measured_policies,
)
from rayward.cluster.records.rates import MeanScore, Rate, StageEvaluation
from rayward.cluster.records.reward_models import RewardModelEvaluation
from rayward.cluster.runs.run_directory import RunDirectory, write_json
from rayward.cluster.stages import makes_reward_model


def stage_evaluations(run: RunDirectory) -> dict[str, StageEvaluation]:
    """The evaluations of the policies that are measured, in the order of the plan."""
    return {
        policy: StageEvaluation.model_validate(result["evaluation"])
        for policy, result in measurements(run).items()
    }


def measurements(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """All that was measured of each policy, in the order of the plan."""
    policies = [PREVIOUS, *measured_policies(run.recipe())]
    results = {policy: run.stage_result(evaluation_of(policy)) for policy in policies}
    return {policy: result for policy, result in results.items() if result is not None}


def reward_evaluations(run: RunDirectory) -> dict[str, RewardModelEvaluation]:
    """The evaluations of finished reward models, by stage."""
    results = {stage.id: run.stage_result(stage.id) for stage in _reward_stages(run)}
    return {
        stage: RewardModelEvaluation.model_validate(result["evaluation"])
        for stage, result in results.items()
        if result is not None and result["evaluation"] is not None
    }


def finished_stages(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """The results of finished stages, in the order of the plan."""
    results = {stage.id: run.stage_result(stage.id) for stage in make_plan(run.recipe())}
    return {stage: result for stage, result in results.items() if result is not None}


def _reward_stages(run: RunDirectory) -> list[PlannedStage]:
    return [one for one in make_plan(run.recipe()) if makes_reward_model(one.name)]


def write_summary(run: RunDirectory, timing: Mapping[str, float]) -> dict[str, Any]:
    """Write summary.json from the results of the finished stages.

    Args:
        run: the run.
        timing: seconds by phase of the whole run, such as start-up and total.

    Returns:
        What was written. Rates are shares; a rate is None where nothing was measured.
    """
    measured, stages = measurements(run), finished_stages(run)
    given = [policy for policy in measured if policy not in stages]
    document = {
        "stages": [
            {
                "name": stage,
                "seconds": stages[stage]["seconds"] if stage in stages else 0.0,
                **_short(measured.get(stage)),
            }
            for stage in [*given, *stages]
        ],
        "reward_models": {
            stage: {
                "accuracy": found.accuracy.rate,
                "pairs": found.accuracy.total,
                "interval": _interval(found.accuracy),
            }
            for stage, found in reward_evaluations(run).items()
        },
        "timing": dict(timing),
    }
    write_json(run.summary_path, document)
    return document


def _short(result: dict[str, Any] | None) -> dict[str, Any]:
    found = None if result is None else StageEvaluation.model_validate(result["evaluation"])
    return {
        "judge": found.judge if found else None,
        "adversarial_prompts": found.adversarial_prompts if found else None,
        "violation_rate": _rate(found.violations if found else None),
        "violation_interval": _interval(found.violations if found else None),
        "benign_prompts": found.benign_prompts if found else None,
        "helpful_rate": _rate(found.helpful if found else None),
        "false_refusal_rate": _rate(found.false_refusals if found else None),
        "well_formed_refusal_rate": _rate(found.well_formed_refusals if found else None),
        "borderline_prompts": found.borderline_prompts if found else None,
        "borderline_false_refusal_rate": _rate(found.borderline_false_refusals if found else None),
        "mean_safety": _mean(found.safety_score if found else None),
        "mean_helpfulness": _mean(found.helpfulness_score if found else None),
        "truthfulqa": _truthfulqa(None if result is None else result["truthfulqa"]),
        "toxigen": _toxigen(None if result is None else result["toxigen"]),
    }


def _truthfulqa(result: dict[str, Any] | None) -> dict[str, Any] | None:
    if result is None:
        return None
    found = TruthfulQAResult.model_validate(result)
    return {
        "questions": found.questions,
        "left_out": found.left_out,
        "mc1": found.mc1.rate,
        "mc2": found.mc2,
        "truthful": _rate(found.truthful),
        "informative": _rate(found.informative),
        "truthful_and_informative": _rate(found.truthful_and_informative),
    }


def _toxigen(result: dict[str, Any] | None) -> dict[str, Any] | None:
    if result is None:
        return None
    found = ToxigenResult.model_validate(result)
    return {
        "prompts": found.prompts,
        "left_out": found.left_out,
        "toxic": _rate(found.toxic),
    }


def _mean(found: MeanScore | None) -> float | None:
    return None if found is None else found.mean


def _rate(found: Rate | None) -> float | None:
    return None if found is None else found.rate


def _interval(found: Rate | None) -> list[float] | None:
    if found is None or found.low is None or found.high is None:
        return None
    return [found.low, found.high]
