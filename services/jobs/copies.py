"""Where runs are while they run: in place, or in a local folder that is copied to a store.

Jobs write files in place, append and lock, which no object store can do.
"""

import hashlib
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from rayward.cluster.atomic import new_file
from rayward.cluster.errors import InputError
from rayward.cluster.runs.run_lock import LOCK
from rayward.services.jobs.records import FOLDER, JobRecord
from rayward.services.jobs.runs import RunFiles, RunsRoot

_COPY_EVERY_S = 5.0
# What says that something else is there goes last.
_MARKERS = ("stages/", "promoted.json", "manifest.json", "status.json")
_UNCOPIED = (LOCK,)
# Written beside its target, and renamed when it is whole (rayward.cluster.atomic).
_TEMPORARY = ".tmp"


class Copies:
    """The way of runs between the runs root and the place where they run.

    Args:
        root: where runs belong.

    Raises:
        InputError: the local folder is somebody else's.
    """

    def __init__(self, root: RunsRoot) -> None:
        self._root = root
        self.place = root
        """Where jobs run: always local."""
        if not root.is_local:
            name = hashlib.sha256(root.uri.encode()).hexdigest()[:16]
            scratch = Path(tempfile.gettempdir()) / f"rayward-runs-{name}"
            scratch.mkdir(mode=0o700, exist_ok=True)
            if scratch.is_symlink() or scratch.stat().st_uid != os.getuid():
                # Anybody may put something there first.
                raise InputError("jobs.runs_root", root.uri, f"that {scratch} is this user's own")
            self.place = RunsRoot(str(scratch))
        # What lies at the root already: size and time of change, by path.
        self._copied: dict[str, dict[str, tuple[int, int]]] = {}
        self._last: dict[str, float] = {}

    def nearest(self, job: str) -> RunsRoot:
        """Where a job's files are newest."""
        return self.place if Path(self.place.path, FOLDER, job).is_dir() else self._root

    def are_nearest(self, files: RunFiles) -> bool:
        """Whether a run's files are still where they were found."""
        job = Path(files.path).name
        return self.nearest(job).run(job).path == files.path

    def fetch(self, job: JobRecord) -> None:
        """Have a job's files, those of an earlier attempt too, where it is to run.

        Raises:
            OSError: the store does not answer, or has no such job.
        """
        if self.place is self._root:
            return
        self._drop(job)
        hidden = self._hidden(job)
        self._download(f"{FOLDER}/{job.id}", hidden)
        if not hidden.is_dir():
            raise FileNotFoundError(self._root.place_of(f"{FOLDER}/{job.id}"))
        self._download(job.id, Path(self.place.path, job.id))
        hidden.rename(self._folder(job))
        self._copied.pop(job.id, None)

    def bring(self, job: JobRecord) -> None:
        """Copy what is new of a running job to the root, if the last time was long ago."""
        if self.place is self._root:
            return
        if time.monotonic() - self._last.get(job.id, -_COPY_EVERY_S) >= _COPY_EVERY_S:
            self._copy(job)

    def finish(self, job: JobRecord) -> None:
        """Copy what is new of a job that has ended, and give its room here back."""
        if self.place is self._root:
            return
        if self._folder(job).is_dir():
            self._copy(job)
        self._copied.pop(job.id, None)
        self._last.pop(job.id, None)
        self._drop(job)

    def _folder(self, job: JobRecord) -> Path:
        """The job's own folder here, which says that all of its files are newest here."""
        return Path(self.place.path, FOLDER, job.id)

    def _hidden(self, job: JobRecord) -> Path:
        return Path(self.place.path, FOLDER, f".{job.id}")

    def _drop(self, job: JobRecord) -> None:
        """Take a job's files away, in such an order that nobody takes half of them for all."""
        hidden = self._hidden(job)
        shutil.rmtree(hidden, ignore_errors=True)
        with suppress(FileNotFoundError):
            self._folder(job).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.rmtree(Path(self.place.path, job.id), ignore_errors=True)

    def _download(self, folder: str, target: Path) -> None:
        selector = fs.FileSelector(
            f"{self._root.path}/{folder}", allow_not_found=True, recursive=True
        )
        found = self._root.filesystem.get_file_info(selector)
        if not found:
            return
        for info in found:
            # Of an upload that was cut short.
            if info.type == fs.FileType.File and info.path.endswith(_TEMPORARY):
                self._root.filesystem.delete_file(info.path)
        target.mkdir(parents=True)
        fs.copy_files(
            f"{self._root.path}/{folder}",
            str(target),
            source_filesystem=self._root.filesystem,
            destination_filesystem=self.place.filesystem,
        )

    def _copy(self, job: JobRecord) -> None:
        done = self._copied.setdefault(job.id, {})
        base = Path(self.place.path)
        found = {job.log: base / job.log} | {
            path.relative_to(base).as_posix(): path
            for path in (base / job.id).rglob("*")
            if path.name not in _UNCOPIED and not path.name.endswith(_TEMPORARY)
        }
        for name in sorted(found, key=lambda name: _rank(name.removeprefix(f"{job.id}/"))):
            path = found[name]
            try:
                if not path.is_file():
                    continue
                about = path.stat()
                if done.get(name) == (about.st_size, about.st_mtime_ns):
                    continue
                self._upload(path, name)
            except FileNotFoundError:
                # Checkpoints are taken away while the job runs.
                continue
            done[name] = (about.st_size, about.st_mtime_ns)
        for gone in [name for name in done if name not in found]:
            # It is gone already where the answer to an earlier try was lost.
            with suppress(FileNotFoundError):
                self._root.filesystem.delete_file(f"{self._root.path}/{gone}")
            del done[gone]
        self._last[job.id] = time.monotonic()

    def _upload(self, path: Path, name: str) -> None:
        with pa.OSFile(str(path)) as source:
            data_size = source.size()
            with new_file(self._root.filesystem, f"{self._root.path}/{name}") as sink:
                # A log may grow meanwhile; what is new comes the next time.
                while data_size > 0:
                    chunk = source.read(min(data_size, 8 * 1024 * 1024))
                    if not chunk:
                        break
                    sink.write(chunk)
                    data_size -= len(chunk)


def _rank(name: str) -> tuple[int, str]:
    """Files in the order in which they are copied: whatever is not a marker first."""
    for place, marker in enumerate(_MARKERS, start=1):
        if name.startswith(marker):
            return place, name
    return 0, name
