"""A run directory made by the real writers, for the tests of the report."""

from pathlib import Path
from typing import Any

import numpy as np

from cluster.config.load import parse_recipe
from cluster.metrics import MetricsWriter
from cluster.run_directory import RunDirectory
from cluster.types import ATTACK_VECTORS, RATINGS, RISK_CATEGORIES, Message, PreferencePair, Prompt
from pipelines.judgements import ORACLE, evaluate_judgements
from pipelines.reward_accuracy import evaluate_reward_model
from pipelines.reward_metrics import calibrate_safety
from pipelines.samples import Sample, write_samples
from pipelines.summary import write_summary

RECIPE = {
    "name": "tiny",
    "seed": 7,
    "data": {"tiny_world": {}},
    "model": {"make": {}},
}
HOSTILE = '<script>alert("x")</script> & <b>'
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


def a_prompt(number: int, kind: str) -> Prompt:
    adversarial = kind == "adversarial"
    text = HOSTILE if number == 0 else f"{kind} question {number}: " + "how do I do it? " * 3
    return Prompt(
        id=f"{kind}-{number:04d}",
        messages=(Message("user", text),),
        risk_category=RISK_CATEGORIES[number % 3] if adversarial else None,
        attack_vector=ATTACK_VECTORS[number // 3 % 7] if adversarial else None,
        adversarial=adversarial,
        borderline=kind == "borderline",
        source="test",
    )


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
    judged: bool = True,
    metrics: tuple[str, ...] = PPO_METRICS,
) -> RunDirectory:
    """A finished run, whose PPO stage recorded these metrics."""
    rng = np.random.default_rng(0)
    with RunDirectory.create(root, parse_recipe(RECIPE)) as run:
        for stage, violating in (("sft", 0.52), ("ppo", 0.012)):
            samples = answers(stage, violating, rng)
            write_samples(run.samples_path(stage), samples)
            verdicts = [(s.prompt, s.verdict if judged else None) for s in samples]
            found = evaluate_judgements(verdicts, ORACLE if judged else None)
            result = {"seconds": 80.5, "evaluation": found.model_dump(mode="json")}
            run.complete_stage(stage, result | (TRAINED if stage == "ppo" else {}))
        for axis in ("safety", "helpfulness"):
            rows = pairs(rng)
            measured = evaluate_reward_model(axis, rows)
            result = {"seconds": 20.0, "evaluation": measured.model_dump(mode="json")}
            safety = calibrate_safety(rows) if axis == "safety" else None
            result["safety_calibration"] = safety and safety.model_dump(mode="json")
            run.complete_stage(f"reward_{axis}", result)
        with MetricsWriter(run.metrics_path, run.tensorboard_dir) as writer:
            for step in range(1, 41):
                names = (*metrics, *(MEASURED if step % 5 == 0 else ()))
                writer.log(step, "ppo", {n: float(rng.random()) * 0.2 + step / 60 for n in names})
            for stage in ("sft", "reward_safety", "reward_helpfulness"):
                for step in range(1, 201):
                    values = {
                        "train/loss": 3 / step,
                        "train/learning_rate": 2e-5 * (1 - step / 250),
                    }
                    values |= {"train/accuracy": step / 200} if stage != "sft" else {}
                    writer.log(step, stage, values)
        write_summary(run, {"start_up": 41.0, "total": 305.0})
        run.set_status("succeeded")
    return run
