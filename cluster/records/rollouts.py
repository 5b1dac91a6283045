"""Rollouts that wait for the learner, on disk: part of a checkpoint."""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayward.cluster.atomic import write_bytes
from rayward.cluster.types import Prompt, Rollout

_SCHEMA = pa.schema(
    [
        pa.field("batch", pa.int64(), nullable=False),
        pa.field("unit", pa.int64(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("sample_index", pa.int64(), nullable=False),
        pa.field("policy_version", pa.int64(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int64()), nullable=False),
        pa.field("response_start", pa.int64(), nullable=False),
        pa.field("sampler_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
    ]
)


def write_rollouts(path: Path, rows: Sequence[tuple[int, int, Rollout]]) -> None:
    """Write rollouts, each with the number of its batch and of its unit in it, atomically.

    Prompts are kept by their ids alone: the data of a run does not change.
    """
    table = pa.Table.from_pylist(
        [
            {
                "batch": batch,
                "unit": unit,
                "prompt_id": rollout.prompt.id,
                "sample_index": rollout.sample_index,
                "policy_version": rollout.policy_version,
                "token_ids": rollout.token_ids,
                "response_start": rollout.response_start,
                "sampler_logprobs": rollout.sampler_logprobs,
                "finish_reason": rollout.finish_reason,
            }
            for batch, unit, rollout in rows
        ],
        schema=_SCHEMA,
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(str(path.absolute()), buffer.getvalue())


def read_rollouts(
    path: Path, prompts: Mapping[str, Prompt]
) -> dict[tuple[int, int], list[Rollout]]:
    """Read rollouts as `write_rollouts` wrote them, in order, by batch and unit.

    Args:
        path: the file.
        prompts: by id; all that the file names.
    """
    found: defaultdict[tuple[int, int], list[Rollout]] = defaultdict(list)
    for row in pq.read_table(path, schema=_SCHEMA).to_pylist():
        rollout = Rollout(
            prompt=prompts[row["prompt_id"]],
            sample_index=row["sample_index"],
            policy_version=row["policy_version"],
            token_ids=np.asarray(row["token_ids"], dtype=np.int64),
            response_start=row["response_start"],
            sampler_logprobs=np.asarray(row["sampler_logprobs"], dtype=np.float32),
            finish_reason=row["finish_reason"],
        )
        found[row["batch"], row["unit"]].append(rollout)
    return dict(found)
