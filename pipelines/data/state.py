"""How a data directory is split and who is writing to it: what lets imports join each other."""

from pydantic import ValidationError

from rayward.cluster.atomic import is_file, join, read_bytes, write_bytes
from rayward.cluster.errors import InputError
from rayward.cluster.records.tables import DataDirectory
from rayward.pipelines.data.merge import SPLITS, TRAINING_SPLITS, SplitRule

STATE_FILE = "import.json"


class _State(SplitRule):
    """How a directory is split, and the import that is writing to it."""

    unfinished: str | None


def check_joins(directory: DataDirectory, rule: SplitRule, writing: str) -> None:
    """Refuse a directory that new rows cannot join without breaking its split.

    Args:
        directory: the data directory.
        rule: how the new rows are to be split.
        writing: the import that is to begin, in words.

    Raises:
        InputError: the directory is a file, has rows of unknown origin, is split otherwise, or
            another import into it did not end.
    """
    check_folder(directory)
    state_path = join(directory.uri, STATE_FILE)
    if not is_file(state_path):
        if has_rows(directory):
            raise InputError(
                "--out",
                directory.uri,
                f"a new folder or one that `rayward import` wrote; without {STATE_FILE} it is "
                "not known how this one was split",
            )
        return
    try:
        state = _State.model_validate_json(read_bytes(state_path))
    except ValidationError as error:
        raise InputError("file", state_path, f"as `rayward import` wrote it ({error})") from error
    for name, value in rule.model_dump().items():
        if value != getattr(state, name):
            raise InputError(
                "--" + name.replace("_", "-"),
                value,
                f"{getattr(state, name)}, as for the other imports into {directory.uri}",
            )
    if state.unfinished not in (None, writing):
        raise InputError(
            "--out",
            directory.uri,
            f"a directory to which no other import is writing; this one did not end: "
            f"{state.unfinished} (repeat it first, or start with a new folder)",
        )


def begin(directory: DataDirectory, rule: SplitRule, writing: str) -> None:
    """Write down that `writing` is under way; the directory is incomplete until `end`.

    Raises:
        InputError: the directory cannot be written to.
    """
    state = _State(**rule.model_dump(), unfinished=writing)
    try:
        write_bytes(join(directory.uri, STATE_FILE), state.model_dump_json().encode())
    except OSError as error:
        raise InputError(
            "--out", directory.uri, f"a folder that can be written to ({error})"
        ) from error
    directory.mark_incomplete()


def end(directory: DataDirectory, rule: SplitRule) -> None:
    """Write down that nothing is under way any more: the directory is complete."""
    state = _State(**rule.model_dump(), unfinished=None)
    write_bytes(join(directory.uri, STATE_FILE), state.model_dump_json().encode())
    directory.mark_complete()


def holds_split_data(directory: DataDirectory) -> bool:
    """Whether anything but benchmarks was, or is being, written to the directory."""
    return is_file(join(directory.uri, STATE_FILE)) or has_rows(directory)


def has_rows(directory: DataDirectory) -> bool:
    """Whether any table but a benchmark's is there."""
    paths = [directory.prompts(split) for split in SPLITS]
    for table in (
        directory.demonstrations,
        directory.safety_demonstrations,
        directory.preferences,
    ):
        paths += [table(part) for part in TRAINING_SPLITS]
    return any(is_file(path) for path in paths)


def check_folder(directory: DataDirectory) -> None:
    """Refuse a directory that is a file.

    Raises:
        InputError: it is one.
    """
    if is_file(directory.uri):
        raise InputError("--out", directory.uri, "a folder; this is a file")
