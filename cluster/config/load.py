"""Reading a recipe: YAML, overrides from the command line, and errors a person can act on."""

import os
import re
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cluster.config.recipe import Recipe
from cluster.config.serving import ServingSettings
from cluster.errors import InputError

# A date such as 2026-13-01 is a plain ValueError.
NOT_YAML = (yaml.YAMLError, ValueError)
_PATHS = ("path", "chat_template", "templates", "preprompts", "previous", "earlier", "policy")
_Document = TypeVar("_Document", Recipe, ServingSettings)
_SETTINGS = "a YAML mapping of settings"
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


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


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply `a.b=c` overrides, whose values are YAML.

    Raises:
        InputError: the file is missing, not YAML, or a setting is unknown or wrong.
    """
    return make_recipe(read_mapping(path, "recipe", _SETTINGS), overrides)


def load_serving(path: Path, overrides: list[str] | None = None) -> ServingSettings:
    """Read a serving document and apply overrides, as `load_recipe`.

    Raises:
        InputError: the file is missing, not YAML, or a setting is unknown or wrong.
    """
    return make_serving(read_mapping(path, "serving document", _SETTINGS), overrides)


def make_recipe(document: dict[str, Any], overrides: list[str] | None) -> Recipe:
    """Apply overrides to a recipe document, which changes, and validate it.

    Raises:
        InputError: a setting is unknown or wrong.
    """
    return parse_recipe(_finished(document, overrides))


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
    return _parse(Recipe, document)


def parse_serving(document: dict[str, Any]) -> ServingSettings:
    """Validate a serving document.

    Raises:
        InputError: names the first wrong setting and how many others are wrong.
    """
    return _parse(ServingSettings, document)


def _parse(kind: type[_Document], document: dict[str, Any]) -> _Document:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _as_input_error(error, document) from error


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


def _finished(document: dict[str, Any], overrides: list[str] | None) -> dict[str, Any]:
    for override in overrides or []:
        _apply(document, override)
    _make_paths_absolute(document)
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


def _as_input_error(error: ValidationError, document: object) -> InputError:
    details = error.errors()
    first = details[0]
    own = first.get("ctx", {}).get("error")
    if first["type"] == "union_tag_invalid":
        own = InputError(
            f"{_dotted(first, document)}.name",
            first["ctx"]["tag"],
            f"one of {first['ctx']['expected_tags']}",
        )
    elif not isinstance(own, InputError):
        own = InputError(_dotted(first, document), _found(first), _expected(first))
    others = len(details) - 1
    if not others:
        return own
    count = "1 more setting is wrong" if others == 1 else f"{others} more settings are wrong"
    return InputError(own.field, own.value, f"{own.expected} ({count})")


def _dotted(detail: ErrorDetails, document: object) -> str:
    """The setting as it is written; pydantic also names which of several kinds it took."""
    parts = []
    *inner, last = detail["loc"] or ("recipe",)
    for part in inner:
        if isinstance(document, dict):
            if part not in document:
                continue
            document = document[part]
        elif isinstance(document, list) and isinstance(part, int):
            document = document[part]
        parts.append(part)
    return ".".join(str(part) for part in (*parts, last))


def _found(detail: ErrorDetails) -> object:
    if detail["type"] == "missing":
        return None
    # A whole section says nothing; the message names the setting that is at fault.
    return "a mapping" if isinstance(detail["input"], dict) else detail["input"]


def _expected(detail: ErrorDetails) -> str:
    """What would be right, as a phrase; pydantic says it in sentences."""
    kind, context = detail["type"], detail.get("ctx", {})
    phrases = {
        "extra_forbidden": "a known setting; `rayward config schema` lists them",
        "missing": "a value; this setting has no default",
        "model_type": "a mapping of settings",
        "invalid_key": "a name in text",
        "string_pattern_mismatch": f"text that matches {context.get('pattern')}",
        "too_short": f"at least {context.get('min_length')} of them",
        "union_tag_not_found": "a mapping of settings",
        "greater_than": f"a number greater than {context.get('gt')}",
        "greater_than_equal": f"a number of at least {context.get('ge')}",
        "less_than": f"a number less than {context.get('lt')}",
        "less_than_equal": f"a number of at most {context.get('le')}",
    }
    phrase = phrases.get(kind, detail["msg"].removeprefix("Input should be "))
    if kind == "float_type" and _EXPONENT.fullmatch(str(detail["input"])):
        phrase += "; in YAML one with an exponent has a point, as in 1.0e-3"
    return phrase
