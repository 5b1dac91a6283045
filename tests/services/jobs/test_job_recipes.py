"""What is refused when it is submitted, with the field named."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayward.cluster.errors import InputError
from rayward.cluster.records.tables import DataDirectory
from rayward.services.jobs.recipes import check_config
from rayward.services.jobs.schemas import JobKind

GOOD: dict[str, Any] = {"name": "r", "data": {"tiny_world": {}}, "model": {"make": {}}}


def refusal(kind: JobKind, **changes: object) -> InputError:
    with pytest.raises(InputError) as refused:
        check_config(kind, {**GOOD, **changes})
    return refused.value


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    assert check_config("recipe", GOOD).stages[0] == "sft"
    assert check_config("stage", {**GOOD, "stages": ["sft"]}).stages == ["sft"]
    DataDirectory(str(tmp_path)).mark_complete()
    for data in (str(tmp_path), "s3://bucket/data", "gs://bucket/data"):
        for model in (str(tmp_path), "gpt2", "org/Model-1.5"):
            check_config("recipe", {**GOOD, "data": {"path": data}, "model": {"path": model}})


def test_a_stage_is_one_stage() -> None:
    refused = refusal("stage", stages=["sft", "reward_safety"])
    assert refused.field == "config.stages"
    assert refusal("stage").field == "config.stages"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": "x"}, "config.seed"),
        ({"sft": {"batch_size": 0}}, "config.sft.batch_size"),
        ({"stages": ["sft", "sft"]}, "config.stages"),
        ({"data": {"path": "data"}}, "config.data.path"),
        ({"data": {"path": "/no/such/data"}}, "config.data.path"),
        ({"data": {"path": "/a\0b"}}, "config.data.path"),
        ({"data": {"path": "http://somewhere/data"}}, "config.data.path"),
        # The server would ask where the client says, or send its login there.
        ({"data": {"path": "fsspec+http://somewhere/data"}}, "config.data.path"),
        ({"data": {"path": "s3://data?endpoint_override=http://a"}}, "config.data.path"),
        ({"data": {"path": "s3://data#x"}}, "config.data.path"),
        ({"data": {"path": "s3://127.0.0.1:1/data"}}, "config.data.path"),
        ({"data": {"path": "s3:///data"}}, "config.data.path"),
        ({"data": {"path": "abfs://container@evil.example/data"}}, "config.data.path"),
        ({"data": {"path": "abfs://container/data"}}, "config.data.path"),
        ({"data": {"path": "hdfs://somewhere:8020/data"}}, "config.data.path"),
        (
            {"tracking": {"mlflow": {"tracking_uri": "https://somewhere"}}},
            "config.tracking.mlflow.tracking_uri",
        ),
        ({"model": {"path": "/no/such/model"}}, "config.model.path"),
        ({"model": {"path": "/a\0b"}}, "config.model.path"),
        ({"model": {"path": "../model"}}, "config.model.path"),
        ({"model": {"path": "runs/one/models/ppo"}}, "config.model.path"),
        ({"ppo": {"safety": {"path": "/no/such/model"}}}, "config.ppo.safety.path"),
        ({"red_teaming": {"templates": "mine.yaml"}}, "config.red_teaming.templates"),
        ({"rejection_sampling": {"earlier": ["/no/run"]}}, "config.rejection_sampling.earlier.0"),
        ({"\ud800": 1}, "config"),
        ({"name": "\ud800"}, "config.name"),
        # What YAML cannot hold, or no program use.
        ({"tracking": {"wandb": {"entity": "\ud800"}}}, "config.tracking.wandb.entity"),
        ({"resources": {"labels": {"a": "x\udfff"}}}, "config.resources.labels.a"),
        ({"resources": {"labels": {"\ud800": "a"}}}, "config.resources.labels"),
        ({"stages": ["sft", "\ud800"]}, "config.stages.1"),
        ({"sft": {"epochs": 10**400}}, "config.sft.epochs"),
        ({"sft": {"epochs": -(2**63)}}, "config.sft.epochs"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str) -> None:
    refused = refusal("recipe", **changes)
    assert refused.field == field
    assert len(str(refused).encode()) < 1000


@pytest.mark.parametrize(
    "uri", ["s3://KEY:SECRET@bucket/data", "abfs://account:SECRET@127.0.0.1:1/c", "s3://b?k=SECRET"]
)
def test_a_login_is_refused_and_told_to_nobody(uri: str) -> None:
    refused = refusal("recipe", data={"path": uri})
    assert refused.field == "config.data.path"
    assert "the login is the service's own" in str(refused)
    assert "SECRET" not in str(refused)


def test_a_long_value_is_cut() -> None:
    assert len(str(refusal("recipe", name="x" * 10**6))) < 1000


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["path", "make", "tiny_world", "earlier", "name"]) | st.text(),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(["name", "data", "model", "stages", "ppo", "sft", "gates", "evaluation", "x"]),
)
def test_nothing_else_is_raised_whatever_comes(value: object, section: str) -> None:
    # What JSON cannot carry does not come.
    value = json.loads(json.dumps(value))
    try:
        check_config("recipe", {**GOOD, section: value})
    except InputError as error:
        refused = error
    else:
        return
    assert refused.field.startswith("config")
    assert str(refused).encode()
