"""What stages of a run leave behind, by the real writers, for the tests of the report."""

from typing import Any

import numpy as np

from rayward.cluster.records.attempts import Attempt
from rayward.cluster.records.benchmark_results import ToxigenResult
from rayward.cluster.records.distilled import DistillationReport, GroupGain
from rayward.cluster.records.rates import rate
from rayward.cluster.records.red_teaming import (
    COUNTED,
    RedTeamingRound,
    RedTeamingSummary,
    summarize,
    violations,
)
from rayward.cluster.records.rejection_sampling import TemperatureTrial
from rayward.cluster.types import ATTACK_VECTORS, RISK_CATEGORIES, Message, Prompt
from rayward.pipelines.evaluation.multiple_choice import ChoiceScore
from rayward.pipelines.evaluation.toxigen import rates_by_group
from rayward.pipelines.evaluation.truthfulqa import summarise
from rayward.pipelines.rejection_sampling.best_of_k import reward_curve

HOSTILE = '<script>alert("x")</script> & <b>'
FIT = {"steps": 200, "rows": 400, "rows_left_out": 0, "tokens": 9000, "training_seconds": 50.0}


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


def rejection_sampling_result(number: int) -> dict[str, Any]:
    """Of round `number`: 3 answers to each of 2 prompts, the second one adversarial."""

    rewards = np.array([[1.0, 3.0, 2.0], [0.0, -2.0, 4.0]])
    curves = {
        "all": reward_curve(rewards),
        "adversarial": reward_curve(rewards[1:]),
        "harmless": reward_curve(rewards[:1]),
    }
    trials = [(0.8, 3.25), (1.2, 3.5)]
    return {
        "seconds": 61.0,
        "fit": FIT,
        "held_out_loss": None,
        "sampling_seconds": 11.0,
        "samples_per_prompt": 3,
        "temperature": 1.2,
        "temperature_search": [
            TemperatureTrial(temperature=at, best_reward=best).model_dump() for at, best in trials
        ],
        "prompts": 2,
        "prompts_too_long": 5,
        "prompts_without_answer": 7,
        "samples": 6,
        "samples_cut": 4,
        "best": 2,
        "earlier_best": 2 * (number - 1),
        "curves": {kind: curve.model_dump(mode="json") for kind, curve in curves.items()},
    }


def attempts(number: int, through: int) -> list[Attempt]:
    """42 answers of one round of red teaming, two to a cell, of which the first got through."""
    return [
        Attempt(
            prompt=a_prompt(index, "adversarial"),
            response="an answer",
            safety=-1.0 if index < through else 1.0,
            got_through=index < through,
            round=number,
            template="logic_manipulation/0",
            seed_id="seed",
            sample_index=0,
            finish_reason="stop",
        )
        for index in range(42)
    ]


def red_teaming_summary(*through: int) -> RedTeamingSummary:
    """Rounds in which so many of 42 answers got through."""
    rounds = [
        RedTeamingRound(
            round=number,
            **(dict.fromkeys(COUNTED, 0) | {"seeds": 6, "by_template": 42}),
            asked=42,
            violations=violations(attempts(number, count)),
            kept=count,
        )
        for number, count in enumerate(through, start=1)
    ]
    every = [one for n, count in enumerate(through, start=1) for one in attempts(n, count)]
    return summarize(rounds, every)


def distillation_report() -> DistillationReport:
    """30 of 70 answers kept; nothing of one category."""
    return DistillationReport(
        prompts=80,
        too_long=3,
        cut=4,
        leaked=2,
        empty=1,
        kept=rate(30, 70),
        gain=0.125,
        by_category={
            "no_category": GroupGain(kept=rate(0, 10), gain=None),
            "unqualified_advice": GroupGain(kept=rate(30, 60), gain=0.125),
        },
        by_kind={
            "adjectives": GroupGain(kept=rate(20, 40), gain=0.0625),
            "generic": GroupGain(kept=rate(10, 30), gain=0.25),
        },
    )


def benchmark_results(judged: bool) -> dict[str, Any]:
    """4 questions and 4 prompts about 2 groups."""
    truthfulqa = summarise(
        [ChoiceScore(mc1=one < 1, mc2=0.25 * one) for one in range(4)],
        left_out=1,
        true=[True, True, False, False] if judged else None,
        informative=[True, False, True, True] if judged else None,
        truth_judge="judges/truth" if judged else None,
        info_judge="judges/info" if judged else None,
    )
    toxic = [True, False, False, False]
    toxigen = ToxigenResult(
        prompts=4,
        left_out=0,
        empty=1,
        toxic=rate(1, 4) if judged else None,
        judge="judges/toxic" if judged else None,
        by_group=rates_by_group(["group_a", "group_a", HOSTILE, HOSTILE], toxic) if judged else {},
    )
    return {
        "truthfulqa": truthfulqa.model_dump(mode="json"),
        "toxigen": toxigen.model_dump(mode="json"),
    }
