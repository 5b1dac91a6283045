"""What pydantic finds wrong in a document, in words that a person can act on."""

import re
from collections.abc import Iterator, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rayward.cluster.errors import InputError

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def as_input_error(error: ValidationError, document: object, whole: str) -> InputError:
    """The first wrong setting of a document, and how many others are wrong.

    Args:
        error: what pydantic found.
        document: what was validated.
        whole: what the document is called, where it is wrong as a whole.
    """
    faults = [_fault(detail, document) for detail in error.errors()]
    first, *rest = faults
    # Where a setting may be of several kinds, pydantic says of each what is wrong with it.
    kinds = [one.expected for one in faults if one.field == first.field]
    expected = " or ".join(dict.fromkeys(kinds))
    others = {one.field for one in rest if not f"{first.field}.".startswith(f"{one.field}.")}
    if others:
        count = "1 more setting is" if len(others) == 1 else f"{len(others)} more settings are"
        expected += f" ({count} wrong)"
    return InputError(first.field or whole, first.value, expected)


def _fault(detail: ErrorDetails, document: object) -> InputError:
    """One wrong setting, by its place in the document."""
    place, own = _place(detail, document), detail.get("ctx", {}).get("error")
    if isinstance(own, InputError):
        # A validator knows no more than its own section.
        below = [own.field] if own.field else []
        return InputError(_dotted(*place, *below), own.value, own.expected)
    if detail["type"] == "union_tag_invalid":
        expected = f"one of {detail['ctx']['expected_tags']}"
        return InputError(_dotted(*place, "name"), detail["input"]["name"], expected)
    return InputError(_dotted(*place), _found(detail), _expected(detail))


def _dotted(*parts: str | int) -> str:
    return ".".join(str(part) for part in parts)


def _place(detail: ErrorDetails, document: object) -> list[str | int]:
    """Where it is as it is written; pydantic also says which of several kinds it took, and marks
    what is wrong as a mapping's name and not as what stands under it."""
    location, absent = list(detail["loc"]), []
    if detail["type"] == "missing":
        absent = [location.pop()]
    readings = list(_readings(location, document))
    fitting = (parts for parts, found in readings if found is detail["input"])
    return [*next(fitting, readings[0][0]), *absent]


def _readings(
    location: Sequence[str | int], value: object
) -> Iterator[tuple[list[str | int], object]]:
    """The ways to find a location in a document, of which any part may be pydantic's own: the
    place and what is there, with most of the parts first."""
    if not location:
        yield [], value
        return
    part, *rest = location
    inside: dict[str | int, object] = {}
    if isinstance(value, dict):
        inside = value
    elif isinstance(value, list):
        inside = dict(enumerate(value))
    if part in inside:
        for parts, found in _readings(rest, inside[part]):
            yield [part, *parts], found
    yield from _readings(rest, value)


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
