"""A run directory made by the real writers, for the tests of the report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.records.plan import (
    PlannedStage,
    evaluation_of,
    make_plan,
    measured_policies,
    parent_of,
)
from rayward.cluster.records.rates import ORACLE, StageEvaluation
from rayward.cluster.records.samples import Sample, read_samples, write_samples
from rayward.cluster.records.summary import write_summary
from rayward.cluster.runs.run_directory import RunDirectory, write_json
from rayward.cluster.stages import reward_stage
from rayward.cluster.trackers.metrics import MetricsWriter
from rayward.cluster.types import AXES, RATINGS, Axis, PreferencePair, Prompt
from rayward.pipelines.evaluation.gates import check_policy
from rayward.pipelines.evaluation.judgements import evaluate_judgements
from rayward.pipelines.supervised.accuracy import evaluate_reward_model
from rayward.pipelines.supervised.calibration import calibrate_safety
from tests.report_stages import (
    FIT,
    HOSTILE,
    a_prompt,
    benchmark_results,
    distillation_report,
    red_teaming_summary,
    rejection_sampling_result,
)

STAGES = (
    *("sft", "safety_sft", "reward_safety", "reward_helpfulness", "rejection_sampling"),
    *("ppo", "red_teaming", "context_distillation"),
)
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 7,
    "data": {"tiny_world": {}},
    "model": {"make": {}},
    "stages": list(STAGES),
    "gates": {},
}
VIOLATING = {
    "start": 0.6,
    "sft": 0.52,
    "safety_sft": 0.2,
    "rejection_sampling": 0.06,
    "ppo": 0.02,
    "context_distillation": 0.012,
}
FITTED = tuple(stage for stage in STAGES if stage not in ("ppo", "red_teaming"))
# What every PPO run records.
COMMON = (
    "critic/score/mean",
    "critic/rewards/mean",
    "reward/safety/mean",
    "reward/helpfulness/mean",
    "reward/model_disagreement",
    "actor/reference_kl",
    "actor/kl_coef",
    "actor/ppo_kl",
    "actor/pg_loss",
    "actor/pg_clipfrac",
    "actor/entropy",
    "actor/grad_norm",
    "response_length/mean",
    "response_length/clip_ratio",
    "rollout/logprob_diff_mean",
    "rollout/logprob_diff_max",
    "rollout/mismatch_kl",
    "rollout/is_eff_sample_size",
    "rollout/importance_weight_mean",
    "rollout/importance_weight_capped",
    "rollout/staleness_mean",
    "rollout/staleness_max",
    "perf/throughput",
    "timing/sample",
    "timing/update",
    "timing/step",
)
CRITIC = (
    "critic/vf_explained_var",
    "critic/vf_loss",
    "critic/vf_clipfrac",
    "critic/grad_norm",
)
PPO_METRICS = (*COMMON, *CRITIC, "reward/decided_by_safety")
MEASURED = ("validation/reward", "validation/sequence_kl", "validation/objective")
TRAINED = {"steps": 40, "best_step": 35, "version": 41, "early_stopped": False}


def a_sample(prompt: Prompt, **known: Any) -> Sample:  # noqa: ANN401
    plain: dict[str, Any] = {
        "response": "an answer",
        "safety": None,
        "helpfulness": None,
        "decided_by": None,
        "safety_weight": None,
        "helpfulness_weight": None,
        "verdict": None,
        "step": 40,
        "policy_version": 40,
        "finish_reason": "stop",
    }
    return Sample(prompt=prompt, **(plain | known))


def answers(stage: str, violating: float, rng: np.random.Generator) -> list[Sample]:
    samples = []
    for kind, count in (("adversarial", 210), ("benign", 60), ("borderline", 30)):
        for number in range(count):
            draw = float(rng.random())
            if kind == "adversarial":
                verdict = "violation" if draw < violating else "good_refusal"
            elif kind == "benign":
                verdict = "helpful" if draw < 0.98 else "garbage"
            else:
                verdict = "helpful" if draw < 0.8 else "blunt_refusal"
            response = f"{stage} says {verdict} " + "word " * 25 + "unbroken" * 12
            samples.append(
                a_sample(
                    a_prompt(number, kind),
                    response=HOSTILE if number == 0 else response,
                    safety=float(rng.normal(-2 if verdict == "violation" else 3)),
                    helpfulness=float(rng.normal(1)),
                    decided_by="safety" if kind == "adversarial" else "helpfulness",
                    safety_weight=float(kind == "adversarial"),
                    helpfulness_weight=float(kind != "adversarial"),
                    verdict=verdict,
                    finish_reason="length" if draw > 0.97 else "stop",
                )
            )
    return samples


def pairs(rng: np.random.Generator) -> list[tuple[PreferencePair, float, float]]:
    rows = []
    for number in range(300):
        chosen_safe = number % 3 != 0
        pair = PreferencePair(
            prompt=a_prompt(number, "adversarial"),
            chosen="a",
            rejected="b",
            axis="safety",
            rating=RATINGS[number % 4],
            chosen_safe=chosen_safe,
            rejected_safe=number % 3 == 2,
        )
        score = float(rng.normal(2 if chosen_safe else -1))
        rows.append((pair, score, float(score - rng.normal(1.5, 1.2))))
    return rows


def make_run(
    root: Path,
    metrics: tuple[str, ...] = PPO_METRICS,
    stages: tuple[str, ...] = STAGES,
    rounds: int = 1,
    judged: bool = True,
) -> RunDirectory:
    """A finished run of these stages, whose PPO recorded these metrics."""
    rng = np.random.default_rng(0)
    document = RECIPE | {"rounds": rounds, "stages": list(stages)}
    if "sft" not in stages:
        document["model"] = {"path": "org/model"}
    recipe = parse_recipe(document)
    with RunDirectory.create(root, recipe) as run:
        for stage in make_plan(recipe):
            run.complete_stage(stage.id, stage_result(stage, rng))
        for policy in measured_policies(recipe):
            violating = VIOLATING[policy.partition("-")[0]]
            measure(run, policy, answers(policy, violating, rng), ORACLE if judged else None)
        check_gates(run, recipe)
        with MetricsWriter(run.metrics_path, run.tensorboard_dir) as writer:
            for stage in make_plan(recipe):
                log_metrics(writer, stage, metrics, rng)
        write_summary(run, {"ray": 41.0, "total": 305.0, "evaluation/ppo": 12.0})
        run.set_status("succeeded")
    return run


def stage_result(stage: PlannedStage, rng: np.random.Generator) -> dict[str, Any]:
    """What a stage came to."""
    if stage.name == "ppo":
        return {"seconds": 80.5} | TRAINED
    if stage.name == "rejection_sampling":
        return rejection_sampling_result(stage.round)
    if stage.name == "red_teaming":
        found = red_teaming_summary(21, 4)
        return {"seconds": 9.0, "red_teaming": found.model_dump(mode="json")}
    for axis in AXES:
        if stage.name == reward_stage(axis):
            return reward_result(axis, rng)
    result = {"seconds": 30.0, "fit": FIT, "held_out_loss": None}
    if stage.name == "context_distillation":
        found = distillation_report().model_dump(mode="json")
        result |= {"distillation": found, "benign_replayed": 29, "sampling_seconds": 3.0}
    return result


def reward_result(axis: Axis, rng: np.random.Generator) -> dict[str, Any]:
    rows = pairs(rng)
    found = evaluate_reward_model(axis, rows)
    safety = calibrate_safety(rows) if axis == "safety" else None
    return {
        "seconds": 20.0,
        "evaluation": found.model_dump(mode="json"),
        "safety_calibration": safety and safety.model_dump(mode="json"),
    }


def measure(
    run: RunDirectory, policy: str, samples: list[Sample], judge: str | None = ORACLE
) -> None:
    """Measure a policy by its answers."""
    if judge is None:
        samples = [replace(one, verdict=None) for one in samples]
    write_samples(run.samples_path(policy), samples)
    verdicts = [(one.prompt, one.verdict) for one in samples]
    scores: dict[Axis, list[float]] = {
        axis: known
        for axis in AXES
        if None not in (known := [getattr(one, axis) for one in samples])
    }
    found = evaluate_judgements(verdicts, judge, scores)
    result = {"seconds": 6.0, "evaluation": found.model_dump(mode="json")}
    run.complete_stage(evaluation_of(policy), result | benchmark_results(judge is not None))


def check_gates(run: RunDirectory, recipe: Recipe) -> None:
    """Ask the gates as a run does, and promote the last policy where none fails."""
    assert recipe.gates is not None
    failed = False
    for policy in measured_policies(recipe):
        parent = parent_of(recipe, policy)
        result = run.stage_result(evaluation_of(policy))
        assert result is not None
        report = check_policy(
            recipe.gates,
            policy,
            read_samples(run.samples_path(policy)),
            StageEvaluation.model_validate(result["evaluation"]),
            {} if parent is None else {parent: read_samples(run.samples_path(parent))},
        )
        write_json(run.gate_path(policy), report.model_dump(mode="json"))
        failed = failed or bool(report.failed)
    if not failed:
        write_json(run.promoted_path, {"policy": measured_policies(recipe)[-1]})


def log_metrics(
    writer: MetricsWriter, stage: PlannedStage, metrics: tuple[str, ...], rng: np.random.Generator
) -> None:
    if stage.name == "ppo":
        for step in range(1, 41):
            names = (*metrics, *(MEASURED if step % 5 == 0 else ()))
            drawn = {name: float(rng.random()) * 0.2 + step / 60 for name in names}
            writer.log(step, stage.id, drawn)
    elif stage.name in FITTED:
        for step in range(1, 201):
            values = {"train/loss": 3 / step, "train/learning_rate": 2e-5 * (1 - step / 250)}
            values |= {"train/accuracy": step / 200} if "reward" in stage.name else {}
            writer.log(step, stage.id, values)
