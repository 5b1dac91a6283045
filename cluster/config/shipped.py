"""The recipes that come with Rayward, which go by their names."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from rayward.cluster.errors import InputError

# Files, not code: the room above is not imported.
_SHIPPED = "rayward.pipelines.recipes"


def find_recipe(given: str) -> Path | Traversable:
    """The recipe that is meant: a file, else one of those that come with Rayward, by its name.

    Raises:
        InputError: it is a bare name, and neither a file nor a recipe has it.
    """
    path = Path(given)
    if path.is_file() or path.name != given or path.suffix:
        return path
    shipped = shipped_recipes()
    if given not in shipped:
        expected = f"a YAML file, or one of the recipes that are there: {', '.join(shipped)}"
        raise InputError("recipe", given, expected)
    return shipped[given]


def shipped_recipes() -> dict[str, Traversable]:
    """The recipes that come with Rayward, by their names."""
    found = (one for one in files(_SHIPPED).iterdir() if one.name.endswith(".yaml"))
    return {one.name.removesuffix(".yaml"): one for one in sorted(found, key=lambda one: one.name)}
