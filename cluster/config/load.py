"""Reading a recipe: YAML, overrides from the command line, and errors a person can act on."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.config.recipe import Recipe
from cluster.errors import InputError


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply `a.b=c` overrides, whose values are YAML.

    Raises:
        InputError: the file is missing, not YAML, or a setting is unknown or wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("recipe", str(path), f"a readable YAML file ({error})") from error
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError("recipe", str(path), f"valid YAML ({reason})") from error
    if not isinstance(document, dict):
        raise InputError("recipe", str(path), "a YAML mapping of settings")
    for override in overrides or []:
        _apply(document, override)
    return parse_recipe(_with_absolute_paths(document))


def parse_recipe(document: dict[str, Any]) -> Recipe:
    """Validate a recipe document.

    Raises:
        InputError: names the first wrong setting and how many others are wrong.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise _as_input_error(error) from error


def _with_absolute_paths(node: Any) -> Any:
    """Make every `path` that exists here absolute: a run's processes work in its directory."""
    if not isinstance(node, dict):
        return node
    result = {key: _with_absolute_paths(value) for key, value in node.items()}
    path = result.get("path")
    if isinstance(path, str) and Path(path).exists():
        result["path"] = str(Path(path).absolute())
    return result


def _apply(document: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise InputError("--set", override, "a.b=value")
    node = document
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError("--set", override, f"a key under a mapping; {parent!r} is not one")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError("--set", override, "a value that is valid YAML") from error


def _as_input_error(error: ValidationError) -> InputError:
    details = error.errors()
    first = details[0]
    field = ".".join(str(part) for part in first["loc"]) or "recipe"
    if first["type"] == "extra_forbidden":
        expected = "no such setting; `rayward config schema` lists the known ones"
    else:
        expected = first["msg"].removeprefix("Value error, ")
    if len(details) > 1:
        expected += f" ({len(details) - 1} more settings are wrong)"
    # A whole section says nothing; the message names the setting that is at fault.
    value = first["input"] if not isinstance(first["input"], dict) else "these settings"
    return InputError(field, value, expected)
