"""Overlays: parts of a recipe that are laid over it, such as the machines that it runs on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayward.cluster.errors import InputError


@dataclass(frozen=True)
class Overlay:
    """A part of a recipe, and the file that it stands in."""

    file: str
    document: Mapping[str, Any]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One document over another: mappings merge, and everything else replaces what is below."""
    result = dict(below)
    for name, value in above.items():
        under = result.get(name)
        if isinstance(value, dict):
            result[name] = merged(under if isinstance(under, dict) else {}, value)
        else:
            result[name] = value
    return result


def blamed(error: InputError, overlays: Sequence[Overlay], overrides: Sequence[str]) -> InputError:
    """The same fault with the overlay's file before its field, where an overlay set that.

    Args:
        error: names a setting of the merged recipe.
        overlays: in the order in which they were laid.
        overrides: `a.b=c`, which came after them.
    """
    where = [str(part) for part in error.field.split(".")]
    if any(_meet(override.partition("=")[0].split("."), where) for override in overrides):
        return error
    for overlay in reversed(overlays):
        if _sets(overlay.document, where):
            return InputError(f"{overlay.file}: {error.field}", error.value, error.expected)
    return error


def _meet(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one of two dotted names is at or above the other."""
    return all(a == b for a, b in zip(one, other, strict=False))


def _sets(document: object, where: Sequence[str]) -> bool:
    if not where or not isinstance(document, dict):
        return True
    # A name may have dots of its own, as labels do.
    named = [(str(name).split("."), value) for name, value in document.items()]
    return any(
        _sets(value, where[len(name) :]) for name, value in named if where[: len(name)] == name
    )
