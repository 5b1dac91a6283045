"""Names of what stages make, and taking it over from a run beside."""

import json
import os
from pathlib import Path

import pytest

from rayward.cluster.runs.artifacts import (
    Artifact,
    finished_beside,
    link_file,
    link_tree,
    model_identity,
)

CODE = "sha256:00"


def a_run(root: Path, stage: str, artifact: str | None, code: str = CODE) -> Path:
    (root / "stages").mkdir(parents=True)
    (root / "manifest.json").write_text("{}")
    (root / "stages" / f"{stage}.json").write_text(json.dumps({"artifact": artifact, "code": code}))
    return root


def test_the_same_inputs_have_the_same_name_in_any_order() -> None:
    one = Artifact("ppo", {"seed": 0, "settings": {"a": 1, "b": 2}})
    assert one.name == Artifact("ppo", {"settings": {"b": 2, "a": 1}, "seed": 0}).name
    assert one.name != Artifact("ppo", {"seed": 1, "settings": {"a": 1, "b": 2}}).name
    assert one.name != Artifact("sft", one.inputs).name
    # printf '{"seed": 0}' | sha256sum
    assert Artifact("evaluation/ppo", {"seed": 0}).name == "evaluation-ppo-de7d7744ccd7722e"


def test_runs_beside_that_finished_the_same(tmp_path: Path) -> None:
    wanted = Artifact("sft", {"seed": 0})
    same = a_run(tmp_path / "b", "sft", wanted.name)
    a_run(tmp_path / "a", "sft", "sft-0000000000000000")
    a_run(tmp_path / "c", "ppo", wanted.name)
    a_run(tmp_path / "own", "sft", wanted.name)
    a_run(tmp_path / "older", "sft", wanted.name, code="sha256:11")
    # As an earlier version wrote it.
    (a_run(tmp_path / "oldest", "sft", None) / "stages" / "sft.json").write_text("{}")
    no_run = tmp_path / "d" / "stages"
    no_run.mkdir(parents=True)
    (no_run / "sft.json").write_text("not JSON")
    (tmp_path / "file").write_text("")
    assert list(finished_beside(tmp_path / "own", wanted, CODE)) == [same]


def test_linked_trees_hold_the_same_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("x")
    link_tree(source, tmp_path / "target")
    copied = tmp_path / "target" / "deep" / "file"
    assert copied.read_text() == "x"
    assert os.path.samefile(copied, source / "deep" / "file")
    # Whoever deletes the one run does not touch the other.
    (source / "deep" / "file").unlink()
    assert copied.read_text() == "x"
    with pytest.raises(FileExistsError):
        link_tree(source, tmp_path / "target")
    link_file(copied, tmp_path / "new" / "name")
    assert os.path.samefile(copied, tmp_path / "new" / "name")


def test_a_model_is_known_by_its_files(tmp_path: Path) -> None:
    assert model_identity("org/model") == {"id": "org/model"}
    (tmp_path / "config.json").write_text("{}")
    before = model_identity(str(tmp_path))
    assert before["config.json"][0] == 2
    (tmp_path / "config.json").write_text("{ }")
    assert model_identity(str(tmp_path)) != before
