"""One import name: what is installed, where it is found, and what it offers."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rayward
from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import InputError
from rayward.cluster.runs.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("cluster", "actors", "pipelines", "services", "k8s")
RECIPE = {
    "name": "small",
    "data": {"path": "somewhere"},
    "model": {"path": "some/model"},
    "stages": ["sft"],
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, which building leaves its traces in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", *ROOMS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A project whose own names are those of the rooms, beside a checkout of ours."""
    for name in ("services", "actors", "rayward"):
        (tmp_path / name).mkdir()
    (tmp_path / "services" / "__init__.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "cluster.py").write_text("raise RuntimeError('not this one')")
    return tmp_path


def run(code: str, folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code as `python -c` does in a folder, which is first on its path."""
    environment = {} if path is None else {"PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_has_one_name_on_top(installed: Path) -> None:
    names = {path.name for path in installed.iterdir()}
    (information,) = (name for name in names if name.endswith(".dist-info"))
    assert names == {"rayward", information}


def test_the_wheel_holds_every_file_that_code_reads(installed: Path) -> None:
    kinds = {".py", ".yaml", ".jinja"}
    for room in ("cluster", "actors", "pipelines", "services"):
        here = {
            path.relative_to(ROOT)
            for path in (ROOT / room).rglob("*")
            if path.suffix in kinds and path.is_file()
        }
        there = {
            path.relative_to(installed / "rayward")
            for path in (installed / "rayward" / room).rglob("*")
            if path.is_file()
        }
        assert here == there
    assert (installed / "rayward" / "k8s" / "base" / "rayservice.yaml").is_file()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_no_package_of_its_own(installed: Path, tmp_path: Path, room: str) -> None:
    code = f"import rayward.{room}; print(rayward.{room}.__file__); import {room}"
    done = run(code, tmp_path, installed)
    assert done.stdout.strip() == str(installed / "rayward" / room / "__init__.py")
    assert f"No module named '{room}'" in done.stderr


@pytest.mark.parametrize("from_the_wheel", [False, True], ids=["editable", "wheel"])
def test_somebody_elses_folders_do_not_matter(
    hostile: Path, installed: Path, from_the_wheel: bool
) -> None:
    code = (
        "import rayward; from rayward.services.client.rewards import trl_reward\n"
        "print(rayward.load_recipe('demo').name, rayward.__file__)"
    )
    done = run(code, hostile, installed if from_the_wheel else None)
    place = installed if from_the_wheel else ROOT / "src"
    assert done.stdout.split() == ["demo", str(place / "rayward" / "__init__.py")], done.stderr


def test_what_the_package_offers_is_said() -> None:
    assert rayward.__all__ == ["load_recipe", "read_run", "run"]
    for name in rayward.__all__:
        assert "Raises:" in (getattr(rayward, name).__doc__ or "")


def test_a_recipe_is_loaded_by_name_or_by_file(tmp_path: Path) -> None:
    recipe = rayward.load_recipe("demo", ["seed=7"])
    assert isinstance(recipe, Recipe)
    assert (recipe.name, recipe.seed) == ("demo", 7)
    file, overlay = tmp_path / "mine.yaml", tmp_path / "more.yaml"
    file.write_text("{name: mine, data: {path: d}, model: {path: m}, stages: [sft]}")
    overlay.write_text("sft: {epochs: 3}")
    mine = rayward.load_recipe(file, overlays=[overlay])
    assert (mine.name, mine.sft.epochs) == ("mine", 3)


def test_a_run_is_read(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", parse_recipe(RECIPE)) as run:
        run.set_status("succeeded")
    assert rayward.read_run(tmp_path / "run").status().state == "succeeded"
    with pytest.raises(InputError, match=r"path: got .*nothing.*, expected the directory of a run"):
        rayward.read_run(tmp_path / "nothing")


def test_a_run_says_where_nothing_answers(tmp_path: Path) -> None:
    """Before anything is imported or written."""
    with pytest.raises(InputError, match="--address"):
        rayward.run(parse_recipe(RECIPE), tmp_path / "run", address="head")
    assert not (tmp_path / "run").exists()
