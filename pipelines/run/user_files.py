"""Files that users may write: YAML checked against a model, and Jinja templates of one variable."""

from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeVar

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import SandboxedEnvironment
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rayward.cluster.config.base import Settings
from rayward.cluster.config.load import read_mapping
from rayward.cluster.errors import InputError

# What an expression in a template can raise, beside Jinja's own errors.
_FAILED = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

_File = TypeVar("_File", bound=Settings)


def read_file(path: Path | Traversable, model: type[_File], setting: str) -> _File:
    """Read a YAML file as `model`.

    Args:
        path: the file.
        model: what it must hold.
        setting: the setting that names the file.

    Raises:
        InputError: it cannot be read, is not YAML, says something twice, or holds something else;
            the message names the file, the first thing wrong in it, and how many others are.
    """
    document = read_mapping(path, setting, "a YAML mapping")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _as_input_error(error, path, model) from error


def place(path: Path | Traversable, *parts: str | int) -> str:
    """A place in a file, for an error: `FILE: vectors.other[2]`."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"{path}: {text}"


def compile_template(
    environment: SandboxedEnvironment, source: str, variable: str, where: str
) -> Template:
    """Compile a Jinja template that must use one variable, and knows no other.

    Raises:
        InputError: names `where`; it is no Jinja, or uses something else or nothing.
    """
    try:
        names = find_undeclared_variables(environment.parse(source))
        template = environment.from_string(source)
    except TemplateSyntaxError as error:
        expected = f"a Jinja template (line {error.lineno}: {error.message})"
        raise InputError(where, source, expected) from error
    unknown = sorted(names - {variable})
    if unknown:
        expected = f"a template of {variable!r} alone; {unknown[0]!r} is not known"
        raise InputError(where, source, expected)
    if variable not in names:
        raise InputError(where, source, f"a template that uses {{{{ {variable} }}}}")
    return template


def render(template: Template, values: Mapping[str, str], where: str) -> str:
    """The text of a template without the white space around it.

    Raises:
        InputError: names `where`; the template failed.
    """
    try:
        return template.render(**values).strip()
    except _FAILED as error:
        # Jinja's words name parts of the template, and of the lexicons; no prompt.
        reason = str(error) if isinstance(error, TemplateError) else type(error).__name__
        raise InputError(where, "a template", f"one that can be rendered ({reason})") from error


def sandbox() -> SandboxedEnvironment:
    """Where templates of users are rendered: plain text, no access to Python, no guessing."""
    return SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


def require_text(texts: Sequence[str], path: Path | Traversable, *parts: str | int) -> None:
    """Refuse blank entries of a list.

    Raises:
        InputError: names the first.
    """
    for index, text in enumerate(texts):
        if not text.strip():
            raise InputError(place(path, *parts, index), text, "text that is not blank")


def _as_input_error(
    error: ValidationError, path: Path | Traversable, model: type[Settings]
) -> InputError:
    details = error.errors()
    first = details[0]
    parts = first["loc"]
    if parts[-1:] == ("[key]",):  # a wrong key of a mapping, which is what was found
        parts = parts[:-2]
    found = "a mapping" if isinstance(first["input"], dict) else first["input"]
    expected = _expected(first, model)
    if len(details) > 1:
        expected += f" ({len(details) - 1} more wrong in this file)"
    return InputError(place(path, *parts), found, expected)


def _expected(detail: ErrorDetails, model: type[Settings]) -> str:
    """What would be right, as a phrase; pydantic says it in sentences."""
    context = detail.get("ctx", {})
    phrases = {
        "extra_forbidden": f"one of {', '.join(model.model_fields)}",
        "missing": "a value",
        "too_short": f"at least {context.get('min_length')} of them",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than_equal": f"at most {context.get('le')}",
    }
    said = detail["msg"].removeprefix("Input should be ")
    # YAML reads a bare no, yes, on, off and numbers as something else than text.
    phrases["string_type"] = f"{said.replace('a valid string', 'text')}, in quotes where need be"
    return phrases.get(detail["type"], said)
