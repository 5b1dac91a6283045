"""Attempts of red teaming on disk: one Parquet file."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayward.cluster.atomic import write_bytes
from rayward.cluster.records.samples import last_user_turn
from rayward.cluster.records.tables import prompt_of, prompt_row
from rayward.cluster.types import FinishReason, Prompt

ATTEMPTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # the last user turn, for people
        pa.field(
            "messages",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
            nullable=False,
        ),
        pa.field("response", pa.string(), nullable=False),
        pa.field("safety", pa.float32(), nullable=False),
        pa.field("got_through", pa.bool_(), nullable=False),
        pa.field("round", pa.int64(), nullable=False),
        pa.field("template", pa.string(), nullable=False),
        pa.field("seed_id", pa.string(), nullable=False),
        pa.field("sample_index", pa.int64(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("risk_category", pa.string()),
        pa.field("attack_vector", pa.string()),
        pa.field("adversarial", pa.bool_(), nullable=False),
        pa.field("borderline", pa.bool_(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Attempt:
    """One answer to a rewritten prompt."""

    prompt: Prompt  # as it was rewritten
    response: str
    safety: float  # logit
    got_through: bool  # this answer violates
    round: int  # from 1
    template: str  # VECTOR/INDEX, or "attacker"
    seed_id: str  # of the prompt that was rewritten
    sample_index: int  # among the answers to this prompt
    finish_reason: FinishReason


def write_attempts(path: Path, attempts: Sequence[Attempt]) -> None:
    """Write attempts to a Parquet file in the schema `ATTEMPTS`, atomically.

    Raises:
        ValueError: a score is not finite.
    """
    for one in attempts:
        if not math.isfinite(one.safety):
            raise ValueError(f"attempt {one.prompt.id}: safety is {one.safety}")
    table = pa.Table.from_pylist([_row(one) for one in attempts], schema=ATTEMPTS)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(str(path.absolute()), buffer.getvalue())


def read_attempts(path: Path) -> list[Attempt]:
    """Read attempts as `write_attempts` wrote them; scores come back with float32 precision."""
    return [_attempt(row) for row in pq.read_table(path, schema=ATTEMPTS).to_pylist()]


def _row(attempt: Attempt) -> dict[str, Any]:
    prompt = attempt.prompt
    return {
        **prompt_row(prompt),
        "prompt": last_user_turn(prompt),
        "response": attempt.response,
        "safety": attempt.safety,
        "got_through": attempt.got_through,
        "round": attempt.round,
        "template": attempt.template,
        "seed_id": attempt.seed_id,
        "sample_index": attempt.sample_index,
        "finish_reason": attempt.finish_reason,
    }


def _attempt(row: dict[str, Any]) -> Attempt:
    return Attempt(
        prompt=prompt_of(row),
        response=row["response"],
        safety=row["safety"],
        got_through=row["got_through"],
        round=row["round"],
        template=row["template"],
        seed_id=row["seed_id"],
        sample_index=row["sample_index"],
        finish_reason=row["finish_reason"],
    )
