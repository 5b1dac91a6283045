"""Sampled answers on disk: one Parquet file per stage or PPO step."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayward.cluster.atomic import write_bytes
from rayward.cluster.records.tables import prompt_of, prompt_row
from rayward.cluster.types import FinishReason, Prompt

SAMPLES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # the last user turn, for people
        pa.field(
            "messages",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
            nullable=False,
        ),
        pa.field("response", pa.string(), nullable=False),
        pa.field("safety", pa.float32()),
        pa.field("helpfulness", pa.float32()),
        pa.field("decided_by", pa.string()),
        pa.field("safety_weight", pa.float32()),
        pa.field("helpfulness_weight", pa.float32()),
        pa.field("verdict", pa.string()),
        pa.field("risk_category", pa.string()),
        pa.field("attack_vector", pa.string()),
        pa.field("adversarial", pa.bool_(), nullable=False),
        pa.field("borderline", pa.bool_(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("policy_version", pa.int64(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Sample:
    """An answer and what is known of it. Scores are logits, None where no model scored."""

    prompt: Prompt
    response: str
    safety: float | None
    helpfulness: float | None
    decided_by: str | None  # which reward model decides, by the reward mix, or "both"
    safety_weight: float | None  # of the safety logit in the mix
    helpfulness_weight: float | None  # of the helpfulness logit in the mix
    verdict: str | None  # as in rayward.pipelines.evaluation.judgements
    step: int  # the stage's step after which the policy answered
    policy_version: int
    finish_reason: FinishReason


def last_user_turn(prompt: Prompt) -> str:
    """What the user said last; empty where there is no user turn."""
    turns = [message.content for message in prompt.messages if message.role == "user"]
    return turns[-1] if turns else ""


def write_samples(path: Path, rows: Sequence[Sample]) -> None:
    """Write answers to a Parquet file in the schema `SAMPLES`, atomically.

    Raises:
        ValueError: a score is not finite.
    """
    for row in rows:
        for name, score in (("safety", row.safety), ("helpfulness", row.helpfulness)):
            if score is not None and not math.isfinite(score):
                raise ValueError(f"sample {row.prompt.id}: {name} is {score}")
    table = pa.Table.from_pylist([_row(sample) for sample in rows], schema=SAMPLES)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(str(path.absolute()), buffer.getvalue())


def read_samples(path: Path) -> list[Sample]:
    """Read answers as `write_samples` wrote them; scores come back with float32 precision."""
    return [_sample(row) for row in pq.read_table(path, schema=SAMPLES).to_pylist()]


def _row(sample: Sample) -> dict[str, Any]:
    prompt = sample.prompt
    return {
        **prompt_row(prompt),
        "prompt": last_user_turn(prompt),
        "response": sample.response,
        "safety": sample.safety,
        "helpfulness": sample.helpfulness,
        "decided_by": sample.decided_by,
        "safety_weight": sample.safety_weight,
        "helpfulness_weight": sample.helpfulness_weight,
        "verdict": sample.verdict,
        "step": sample.step,
        "policy_version": sample.policy_version,
        "finish_reason": sample.finish_reason,
    }


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(
        prompt=prompt_of(row),
        response=row["response"],
        safety=row["safety"],
        helpfulness=row["helpfulness"],
        decided_by=row["decided_by"],
        safety_weight=row["safety_weight"],
        helpfulness_weight=row["helpfulness_weight"],
        verdict=row["verdict"],
        step=row["step"],
        policy_version=row["policy_version"],
        finish_reason=row["finish_reason"],
    )
