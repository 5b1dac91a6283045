"""Run directories: start, resume, refuse, and what a stage leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import InputError
from rayward.cluster.runs.artifacts import Artifact
from rayward.cluster.runs.manifest import directory_digest, file_digest
from rayward.cluster.runs.run_directory import RunDirectory, has_run


def a_recipe(**settings: object) -> Recipe:
    document = {"name": "tiny", "data": {"tiny_world": {}}, "model": {"make": {}}, **settings}
    return parse_recipe(document)


def test_a_new_run_says_where_it_comes_from(tmp_path: Path) -> None:
    recipe = a_recipe(seed=3)
    with RunDirectory.create(tmp_path / "runs" / "a", recipe) as run:
        assert run.status().state == "running"
    manifest = run.manifest()
    assert (manifest["run"], manifest["seed"]) == ("tiny", 3)
    assert manifest["code"]["version"] in (None, "0.1.0")
    assert manifest["packages"]["ray"].startswith("2.")
    assert RunDirectory(run.root).recipe() == recipe
    # Defaults are spelled out, those of the optimizer too, as numbers and not as text.
    text = run.recipe_path.read_text()
    assert "gae_lambda: 0.95" in text
    assert "learning_rate: 1.0e-06" in text


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"--out.*choose another or --resume"):
        RunDirectory.create(tmp_path, a_recipe())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="a directory; it is a file"):
        RunDirectory.create(tmp_path / "thesis.tex", a_recipe())


def test_a_run_that_was_killed_before_it_had_begun_begins_again(tmp_path: Path) -> None:
    """Whoever starts it again with --auto-resume must not be stuck."""
    root = tmp_path / "run"
    RunDirectory.create(root, a_recipe()).close()
    (root / "recipe.yaml").rename(root / f".recipe.yaml.{'0' * 32}.tmp")
    assert not has_run(root)
    RunDirectory.create(root, a_recipe()).close()
    assert has_run(root)
    assert {path.name for path in root.iterdir()} == {
        ".lock",
        "manifest.json",
        "recipe.yaml",
        "status.json",
    }
    # A recipe or a stage's output is somebody's work, and so is what no run of ours has locked.
    for own in ("recipe.yaml", "notes.txt"):
        (root / "recipe.yaml").unlink(missing_ok=True)
        (root / own).write_text("mine")
        with pytest.raises(InputError, match="choose another or --resume"):
            RunDirectory.create(root, a_recipe())
        assert (root / own).read_text() == "mine"
        (root / own).unlink()
    (root / ".lock").unlink()
    with pytest.raises(InputError, match="choose another or --resume"):
        RunDirectory.create(root, a_recipe())


def test_an_empty_directory_will_do(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, a_recipe()).close()
    assert RunDirectory(tmp_path).recipe().name == "tiny"


def test_resume_keeps_what_is_done(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, a_recipe()) as run:
        run.complete_stage("sft", {"seconds": 1.5})
    with RunDirectory.resume(tmp_path, a_recipe()) as run:
        assert run.stage_result("sft") == {"seconds": 1.5}
        assert run.stage_result("ppo") is None
        assert len(run.manifest()["resumed"]) == 1


@pytest.mark.parametrize(
    ("settings", "named", "expected"),
    [
        ({"seed": 4, "ppo": {"steps": 9}}, "seed", "0,"),
        ({"ppo": {"kl": {"beta": 0.5}}}, "ppo.kl.beta", "0.01,"),
        ({"ppo": {"early_stop": None}}, "ppo.early_stop.every", "5,"),
        ({"stages": ["sft"]}, "stages", "['sft', 'reward_safety'"),
    ],
)
def test_another_recipe_is_refused_by_its_first_difference(
    tmp_path: Path, settings: dict[str, Any], named: str, expected: str
) -> None:
    RunDirectory.create(tmp_path, a_recipe()).close()
    with pytest.raises(InputError) as caught:
        RunDirectory.resume(tmp_path, a_recipe(**settings))
    assert caught.value.field == named
    assert caught.value.expected.startswith(expected)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume"):
        RunDirectory.resume(tmp_path, a_recipe())


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from rayward.cluster.config.load import load_recipe;"
        "from rayward.cluster.runs.run_directory import RunDirectory;"
        "root = Path(sys.argv[1]);"
        "run = RunDirectory.resume(root, load_recipe(root / 'recipe.yaml'));"
        "print('locked', flush=True); sys.stdin.read()"
    )
    RunDirectory.create(tmp_path, a_recipe()).close()
    repository = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"process {other.pid} on "):
            RunDirectory.resume(tmp_path, a_recipe())
        # Whoever only reads is not kept out.
        assert RunDirectory(tmp_path).status().state == "running"
        other.kill()
    RunDirectory.resume(tmp_path, a_recipe()).close()


def test_an_error_is_one_line(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, a_recipe()) as run:
        run.set_status("failed", "ppo", "Actor died:\n  out of memory\n")
    document = json.loads((tmp_path / "status.json").read_text())
    assert document.pop("updated").endswith("Z")
    assert document == {"state": "failed", "stage": "ppo", "error": "Actor died: out of memory"}


def test_a_result_that_is_no_number_does_not_finish_a_stage(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, a_recipe()) as run:
        with pytest.raises(ValueError, match="Out of range float"):
            run.complete_stage("sft", {"seconds": float("nan")})
        assert run.stage_result("sft") is None


def test_lineage(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", a_recipe()) as run:
        with pytest.raises(FileNotFoundError):
            run.record_model("sft", {})
        run.model_dir("sft").mkdir(parents=True)
        (run.model_dir("sft") / "config.json").write_text("{}")
        run.record_data({"prompts/train.parquet": "sha256:00"})
        artifact = Artifact("sft", {"seed": 0})
        run.record_model("sft", {"start": "org/model"}, artifact)
        manifest = run.manifest()
    assert manifest["data"] == {"prompts/train.parquet": "sha256:00"}
    assert manifest["lineage"]["sft"] == {
        "artifact": artifact.name,
        "model": "models/sft",
        "digest": directory_digest(run.model_dir("sft")),
        "parents": {"start": "org/model"},
    }


def test_digests_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "a") == abc
    before = directory_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = directory_digest(tmp_path)
    (tmp_path / "b").write_bytes(b"abd")
    assert len({before, renamed, directory_digest(tmp_path)}) == 3
