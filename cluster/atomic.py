"""Files and folders that are there whole or not at all.

A path is local, or any URI that pyarrow.fs knows (s3://, gs://, file://, fsspec+...://).
"""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from rayward.cluster.errors import InputError

# As pyarrow.fs and fsspec name them: s3, py::fsspec+('s3', 's3a').
_OBJECT_STORES = re.compile(r"\b(s3a?|gcs|gs|abfss?|az)\b")


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it that `uri` names.

    A relative local path is made absolute against the working directory, `~` is expanded.

    Raises:
        InputError: `uri` is empty or of a kind that pyarrow.fs does not know.
    """
    if not uri:
        raise InputError("path", uri, "a local path or a URI such as s3://bucket/folder")
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        raise InputError("path", uri, f"a local path or a pyarrow.fs URI ({error})") from error
    return filesystem, path


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it; the options after a URI's `?` stay at its end."""
    path, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return "/".join((path.rstrip("/"), *parts)) + mark + options


def file_info(uri: str) -> fs.FileInfo:
    """What lies at `uri`; its `type` says whether anything does.

    Raises:
        InputError: the place cannot be asked (no access, no such bucket).
    """
    filesystem, path = resolve(uri)
    try:
        return filesystem.get_file_info(path)
    except OSError as error:
        raise InputError("path", uri, f"a place that can be reached ({error})") from error


def is_file(uri: str) -> bool:
    """Whether `uri` names a file that is there."""
    return bool(file_info(uri).type == fs.FileType.File)


def read_bytes(uri: str) -> bytes:
    """The content of the file at `uri`."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_file(path) as file:
        return bytes(file.read())


def write_bytes(uri: str, data: bytes) -> None:
    """Put `data` at `uri`, in place of what was there; missing folders are made.

    Locally they are on the disk when this returns.
    """
    filesystem, path = resolve(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        with new_file(filesystem, path) as stream:
            stream.write(data)
        return
    filesystem.create_dir(os.path.dirname(path), recursive=True)
    target = Path(path)
    temporary = _temporary_beside(target)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(target.parent)


@contextmanager
def new_file(filesystem: fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """A file of a store to fill, which takes the place of what was at `path` when the block ends.

    Missing folders are made. An object store shows an object when its upload has ended; elsewhere
    the file has a hidden temporary name until then, and is as whole as the store's `move`. An
    upload cannot be taken back: after an error in the block an object store has what was written.
    """
    filesystem.create_dir(os.path.dirname(path), recursive=True)
    if _OBJECT_STORES.search(filesystem.type_name):
        with filesystem.open_output_stream(path) as stream:
            yield stream
        return
    temporary = str(_temporary_beside(Path(path)))
    try:
        with filesystem.open_output_stream(temporary) as stream:
            yield stream
        filesystem.move(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            filesystem.delete_file(temporary)
        raise


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A local folder to fill, which becomes `target` when the block ends without an error.

    Until then it lies beside `target` under a hidden temporary name; after an error it is left
    there, for a look at what went wrong. All that it holds is on the disk before it has its name.

    Raises:
        FileExistsError: `target` exists, before the block or when it ends.
    """
    if target.exists():
        raise FileExistsError(target)
    temporary = _temporary_beside(target)
    temporary.mkdir(parents=True)
    yield temporary
    # A rename would take the place of an empty folder without a word.
    if target.exists():
        raise FileExistsError(target)
    for path in (*temporary.rglob("*"), temporary):
        sync(path)
    temporary.rename(target)
    sync(target.parent)


def _temporary_beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")


def sync(path: Path) -> None:
    """Make what is at `path`, a file's content or a folder's names, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
