"""A run's results in short: summary.json.

A stage's result, as `RunDirectory.complete_stage` takes it, has these keys beside its own:

    seconds      float, what the stage took
    evaluation   StageEvaluation, RewardModelEvaluation or None, as `model_dump(mode="json")`

A reward model's result may also have `safety_calibration`, a SafetyCalibration. That of PPO has
those of `pipelines.ppo.PPOResult`.
"""

from collections.abc import Mapping
from typing import Any

from cluster.run_directory import RunDirectory, write_json
from cluster.types import AXES
from pipelines.judgements import Rate, StageEvaluation
from pipelines.reward_accuracy import RewardModelEvaluation

_REWARD_STAGES = {f"reward_{axis}": axis for axis in AXES}


def stage_evaluations(run: RunDirectory) -> dict[str, StageEvaluation]:
    """The evaluations of finished stages that yield a policy, in the recipe's order."""
    return {
        stage: StageEvaluation.model_validate(result["evaluation"])
        for stage, result in finished_stages(run).items()
        if stage not in _REWARD_STAGES and result["evaluation"] is not None
    }


def reward_evaluations(run: RunDirectory) -> dict[str, RewardModelEvaluation]:
    """The evaluations of finished reward models, by axis."""
    return {
        _REWARD_STAGES[stage]: RewardModelEvaluation.model_validate(result["evaluation"])
        for stage, result in finished_stages(run).items()
        if stage in _REWARD_STAGES and result["evaluation"] is not None
    }


def finished_stages(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """The results of finished stages, in the recipe's order.

    Where PPO starts from a model that no stage made, its evaluation comes first, as "start".
    """
    results = {stage: run.stage_result(stage) for stage in ("start", *run.recipe().stages)}
    return {stage: result for stage, result in results.items() if result is not None}


def write_summary(run: RunDirectory, timing: Mapping[str, float]) -> dict[str, Any]:
    """Write summary.json from the results of the finished stages.

    Args:
        run: the run.
        timing: seconds by phase of the whole run, such as start-up and total.

    Returns:
        What was written. Rates are shares; a rate is None where nothing was measured.
    """
    evaluations = stage_evaluations(run)
    document = {
        "stages": [
            {"name": stage, "seconds": result["seconds"], **_short(evaluations.get(stage))}
            for stage, result in finished_stages(run).items()
        ],
        "reward_models": {
            axis: {
                "accuracy": found.accuracy.rate,
                "pairs": found.accuracy.total,
                "interval": _interval(found.accuracy),
            }
            for axis, found in reward_evaluations(run).items()
        },
        "timing": dict(timing),
    }
    write_json(run.summary_path, document)
    return document


def _short(found: StageEvaluation | None) -> dict[str, Any]:
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
    }


def _rate(found: Rate | None) -> float | None:
    return None if found is None else found.rate


def _interval(found: Rate | None) -> list[float] | None:
    if found is None or found.low is None or found.high is None:
        return None
    return [found.low, found.high]
