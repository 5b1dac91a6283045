"""What pydantic finds wrong in a document, in words that a person can act on."""

import re

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rayward.cluster.errors import InputError

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def as_input_error(error: ValidationError, document: object) -> InputError:
    """The first wrong setting of a document, and how many others are wrong."""
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
