"""Samples on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayward.cluster.records.samples import Sample, read_samples, write_samples
from rayward.cluster.types import Message, Prompt
from rayward.pipelines.tiny_world.oracle import Verdict

SCORES = st.none() | st.floats(-100, 100, width=32)
SAMPLES = st.builds(
    Sample,
    prompt=st.builds(
        Prompt,
        id=st.text(),
        messages=st.lists(
            st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text())
        ).map(tuple),
        risk_category=st.sampled_from([None, "unqualified_advice"]),
        attack_vector=st.sampled_from([None, "other"]),
        adversarial=st.booleans(),
        borderline=st.booleans(),
        source=st.text(),
    ),
    response=st.text(),
    safety=SCORES,
    helpfulness=SCORES,
    decided_by=st.sampled_from([None, "safety", "helpfulness", "both"]),
    safety_weight=st.none() | st.floats(0, 10, width=32),
    helpfulness_weight=st.none() | st.floats(0, 10, width=32),
    verdict=st.sampled_from([None, *Verdict]),
    step=st.integers(0, 10**6),
    policy_version=st.integers(0, 10**6),
    finish_reason=st.sampled_from(["stop", "length"]),
)
ONE = Sample(
    prompt=Prompt(
        id="p1",
        messages=(Message("user", "first"), Message("assistant", "yes"), Message("user", "last")),
        risk_category=None,
        attack_vector=None,
        adversarial=False,
        borderline=False,
        source="test",
    ),
    response="so",
    safety=0.1,
    helpfulness=None,
    decided_by=None,
    safety_weight=1.0,
    helpfulness_weight=0.0,
    verdict=None,
    step=3,
    policy_version=2,
    finish_reason="stop",
)


@settings(max_examples=50)  # a file each
@given(st.lists(SAMPLES, max_size=4))
def test_they_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Sample]) -> None:
    path = tmp_path_factory.mktemp("samples") / "ppo" / "step-000001.parquet"
    write_samples(path, rows)
    assert read_samples(path) == rows


def test_the_columns_that_others_read(tmp_path: Path) -> None:
    write_samples(tmp_path / "sft.parquet", [ONE])
    (row,) = pq.read_table(tmp_path / "sft.parquet").to_pylist()
    assert (row["prompt"], row["response"], row["safety"]) == ("last", "so", np.float32(0.1))
    assert row["helpfulness"] is row["verdict"] is row["decided_by"] is None


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (replace(ONE, safety=float("nan")), "p1: safety is nan"),
        (replace(ONE, helpfulness=float("-inf")), "p1: helpfulness is -inf"),
    ],
)
def test_a_score_that_is_no_number_is_never_written(
    tmp_path: Path, bad: Sample, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        write_samples(tmp_path / "x.parquet", [ONE, bad])
    assert list(tmp_path.iterdir()) == []
