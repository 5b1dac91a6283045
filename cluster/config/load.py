"""Reading a recipe: YAML, overrides from the command line, and errors a person can act on."""

import os
from collections.abc import Callable, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rayward.cluster.config.faults import as_input_error
from rayward.cluster.config.overlays import Overlay, blamed, merged
from rayward.cluster.config.recipe import Recipe, recipe_type
from rayward.cluster.config.serving import ServingSettings
from rayward.cluster.errors import InputError

# A date such as 2026-13-01 is a plain ValueError.
NOT_YAML = (yaml.YAMLError, ValueError)
_PATHS = ("path", "chat_template", "templates", "preprompts", "previous", "earlier", "policy")
_Document = TypeVar("_Document", Recipe, ServingSettings)
_SETTINGS = "a YAML mapping of settings"


class _Loader(yaml.SafeLoader):
    """Refuses a setting that is given twice; PyYAML takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # PyYAML says what is wrong with it
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"found {key.value!r} twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_recipe(
    path: Path | Traversable,
    overrides: list[str] | None = None,
    overlays: Sequence[Path] | None = None,
) -> Recipe:
    """Read a recipe, lay overlays over it, and apply `a.b=c` overrides, whose values are YAML.

    Raises:
        InputError: a file is missing, not YAML, or a setting is unknown or wrong.
    """
    return make_recipe(read_mapping(path, "recipe", _SETTINGS), overrides, overlays)


def resolve_recipe(
    path: Path | Traversable,
    overrides: list[str] | None = None,
    overlays: Sequence[Path] | None = None,
) -> Recipe:
    """As `load_recipe`, for another machine: paths stay as they are written.

    Raises:
        InputError: a file is missing, not YAML, or a setting is unknown or wrong.
    """
    document, laid = _laid_over(read_mapping(path, "recipe", _SETTINGS), overlays)
    return _parse_laid(parse_recipe, _overridden(document, overrides), laid, overrides)


def load_serving(path: Path, overrides: list[str] | None = None) -> ServingSettings:
    """Read a serving document and apply overrides, as `load_recipe`.

    Raises:
        InputError: the file is missing, not YAML, or a setting is unknown or wrong.
    """
    return make_serving(read_mapping(path, "serving document", _SETTINGS), overrides)


def resolve_serving(
    path: Path | Traversable,
    overrides: list[str] | None = None,
    overlays: Sequence[Path] | None = None,
) -> tuple[dict[str, Any], ServingSettings]:
    """A serving document, as `resolve_recipe`: as it is written, and parsed.

    Raises:
        InputError: a file is missing, not YAML, or a setting is unknown or wrong.
    """
    document, laid = _laid_over(read_mapping(path, "serving document", _SETTINGS), overlays)
    _overridden(document, overrides)
    return document, _parse_laid(parse_serving, document, laid, overrides)


def make_recipe(
    document: dict[str, Any], overrides: list[str] | None, overlays: Sequence[Path] | None = None
) -> Recipe:
    """Lay overlays over a recipe document, apply overrides to it, and validate it.

    Args:
        document: may change.
        overrides: `a.b=c`, after the overlays.
        overlays: files that hold a part of a recipe, the last one on top.

    Raises:
        InputError: an overlay cannot be read, or a setting is unknown or wrong.
    """
    document, laid = _laid_over(document, overlays)
    return _parse_laid(parse_recipe, _finished(document, overrides), laid, overrides)


def make_serving(document: dict[str, Any], overrides: list[str] | None) -> ServingSettings:
    """Apply overrides to a serving document, which changes, and validate it.

    Raises:
        InputError: a setting is unknown or wrong.
    """
    return parse_serving(_finished(document, overrides))


def parse_recipe(document: dict[str, Any]) -> Recipe:
    """Validate a recipe document.

    Raises:
        InputError: names the first wrong setting and how many others are wrong.
    """
    return _parse(recipe_type(), document, "recipe")


def parse_serving(document: dict[str, Any]) -> ServingSettings:
    """Validate a serving document.

    Raises:
        InputError: names the first wrong setting and how many others are wrong.
    """
    return _parse(ServingSettings, document, "serving document")


def _parse(kind: type[_Document], document: dict[str, Any], name: str) -> _Document:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise as_input_error(error, document, name) from error


def read_mapping(path: Path | Traversable, field: str, expected: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: the file.
        field: what names the file, for errors.
        expected: what it should hold, for errors.

    Raises:
        InputError: it cannot be read, is not YAML, says something twice, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(field, str(path), f"a readable YAML file ({error})") from error
    try:
        document = parse_yaml(text)
    except NOT_YAML as error:
        reason = " ".join(str(error).split())
        raise InputError(field, str(path), f"valid YAML ({reason})") from error
    if not isinstance(document, dict):
        raise InputError(field, str(path), expected)
    return document


def _laid_over(
    document: dict[str, Any], overlays: Sequence[Path] | None
) -> tuple[dict[str, Any], list[Overlay]]:
    expected = "a YAML mapping that is part of a recipe"
    laid = [
        Overlay(str(path), read_mapping(path, "--overlay", expected)) for path in overlays or []
    ]
    for overlay in laid:
        document = merged(document, overlay.document)
    return document, laid


def _parse_laid(
    parse: Callable[[dict[str, Any]], _Document],
    document: dict[str, Any],
    laid: Sequence[Overlay],
    overrides: list[str] | None,
) -> _Document:
    try:
        return parse(document)
    except InputError as error:
        if not laid:
            raise
        raise blamed(error, laid, overrides or []) from error


def _finished(document: dict[str, Any], overrides: list[str] | None) -> dict[str, Any]:
    _overridden(document, overrides)
    _make_paths_absolute(document)
    return document


def _overridden(document: dict[str, Any], overrides: list[str] | None) -> dict[str, Any]:
    for override in overrides or []:
        _apply(document, override)
    return document


def parse_yaml(text: str) -> object:
    """A YAML document, in which no key stands twice.

    Raises:
        yaml.YAMLError, ValueError: as `NOT_YAML` has them; the text is none.
    """
    return yaml.load(text, _Loader)


def _make_paths_absolute(section: dict[str, Any]) -> None:
    """Make every path that exists here absolute: a run's processes work in its directory."""
    for name, value in section.items():
        if isinstance(value, dict):
            _make_paths_absolute(value)
        elif name in _PATHS and isinstance(value, str):
            section[name] = _absolute(value)
        elif name in _PATHS and isinstance(value, list):
            section[name] = [_absolute(one) if isinstance(one, str) else one for one in value]


def _absolute(path: str) -> str:
    return os.path.abspath(path) if os.path.exists(path) else path


def _apply(document: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not all(key.split(".")):
        raise InputError("--set", override, "a.b=value")
    node = document
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError("--set", override, f"a key under a mapping; {parent!r} is not one")
    try:
        node[leaf] = parse_yaml(value)
    except NOT_YAML as error:
        raise InputError("--set", override, "a value that is valid YAML") from error
