"""What is submitted is looked at as `rayward run` will look at it, before it waits for hours."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import InputError
from rayward.cluster.records.tables import DataDirectory
from rayward.services.http.errors import writable
from rayward.services.jobs.schemas import JobKind

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
# The name of a bucket and nothing else: a host, a port, a login or a query would have the server
# ask somebody of the client's choosing, perhaps with its own login. abfs and hdfs name hosts.
_URI = re.compile(r"(s3|gs|gcs)://[A-Za-z0-9][\w.-]*(/[^?#]*)?", re.ASCII)
_LARGEST = 2**63
_LONGEST_VALUE = 200
_MODELS = ("path", "previous")
_FILES = ("chat_template", "templates", "preprompts")


def check_config(kind: JobKind, config: dict[str, Any]) -> Recipe:
    """Validate a recipe that was submitted, and look for the places that it names.

    Raises:
        InputError: what is wrong, with its field under `config`.
    """
    try:
        _require_writable("", config)
        recipe = parse_recipe(config)
        if kind == "stage" and len(recipe.stages) != 1:
            expected = "exactly one stage for a job of kind stage"
            raise InputError("stages", list(recipe.stages), expected)
        if recipe.data.path is not None:
            _require_data(recipe.data.path)
        _require_own_tracker(recipe)
        document = recipe.model_dump(mode="json", exclude={"data"})
        for field, value in _places(document):
            _require_place(field, value)
    except InputError as error:
        field = "config" if error.field == "recipe" else f"config.{error.field}"
        raise InputError(
            writable(field)[:_LONGEST_VALUE], _short(error.value), error.expected
        ) from error
    return recipe


def _require_writable(field: str, value: object) -> None:
    """Refuse what a recipe's file cannot hold, or no program could use."""
    if isinstance(value, str):
        if writable(value) != value:
            raise InputError(field, value, "text without half a surrogate pair")
    elif isinstance(value, int):
        if abs(value) >= _LARGEST:
            raise InputError(field, "a huge number", f"a number below {_LARGEST}")
    elif isinstance(value, dict):
        for name, one in value.items():
            _require_writable(field or "recipe", name)
            _require_writable(f"{field}.{name}" if field else name, one)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            _require_writable(f"{field}.{index}", one)


def _require_own_tracker(recipe: Recipe) -> None:
    """The job has the service's login for its tracker, which no other server should be sent."""
    mlflow = recipe.tracking.mlflow
    if mlflow is not None and mlflow.tracking_uri is not None:
        expected = "null: the service's own MLFLOW_TRACKING_URI"
        raise InputError("tracking.mlflow.tracking_uri", mlflow.tracking_uri, expected)


def _require_data(path: str) -> None:
    if "://" in path:
        # To ask a store that does not answer takes minutes.
        if not _URI.fullmatch(path):
            # What is shown must not be somebody's login.
            shown = "a URI with a login" if "@" in path else path.partition("?")[0]
            expected = (
                "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER, which names no host; "
                "the login is the service's own"
            )
            raise InputError("data.path", shown, expected)
        return
    if not Path(path).is_absolute() or "\0" in path:
        raise InputError("data.path", path, "an absolute path of the server, or a URI")
    try:
        DataDirectory(path).require_complete()
    except InputError as error:
        raise InputError("data.path", path, error.expected) from error


def _places(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every file, folder and model that a recipe names, with its setting."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _places(value, f"{prefix}{name}.")
        elif name in (*_MODELS, *_FILES) and isinstance(value, str):
            yield prefix + name, value
        elif name == "earlier":
            yield from ((f"{prefix}{name}.{index}", one) for index, one in enumerate(value))


def _require_place(field: str, value: str) -> None:
    is_model = field.rpartition(".")[2] in _MODELS
    if not Path(value).is_absolute():
        # Whether a hub has it only the hub can say.
        if not is_model or not _HUB_ID.fullmatch(value):
            also = " or a hub id" if is_model else ""
            raise InputError(field, value, f"an absolute path of the server{also}")
        return
    try:
        Path(value).stat()
    except (OSError, ValueError) as error:
        # ValueError: a null byte.
        raise InputError(field, value, "a place that exists on the server") from error


def _short(value: object) -> object:
    """A value for a message; a long one is cut, for it may be anything."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= _LONGEST_VALUE:
        return value
    return text[:_LONGEST_VALUE] + "..."
