"""Every recipe that comes with the project is loaded."""

from pathlib import Path

import pytest

import rayward.pipelines.recipes
from rayward.cluster.config.load import load_recipe
from rayward.pipelines.run.capacity import required_cpus

FOLDER = Path(rayward.pipelines.recipes.__file__).parent
RECIPES = sorted(path for path in FOLDER.iterdir() if path.suffix in {".yaml", ".yml"})


def test_the_demo_is_there() -> None:
    demo = load_recipe(FOLDER / "demo.yaml")
    assert demo.stages == [
        "sft",
        "safety_sft",
        "reward_safety",
        "reward_helpfulness",
        "rejection_sampling",
        "ppo",
        "red_teaming",
        "context_distillation",
    ]
    # From nothing: no data and no model have to be brought along.
    assert demo.data.tiny_world is not None
    assert demo.model.make is not None
    assert demo.evaluation.judge is None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_that_is_shipped_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert path.suffix == ".yaml"
    assert required_cpus(recipe) > 0
    # It says at its top, to the person who looks for one, what it is.
    assert path.read_text().startswith("# ")
