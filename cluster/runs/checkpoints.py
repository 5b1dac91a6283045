"""Checkpoints that are whole or do not count.

ROOT/step-000010.partial/   being written
ROOT/step-000010/           whole: COMPLETE lists every file and its size
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rayward.cluster.atomic import sync, write_bytes

_MARKER = "COMPLETE"
_PARTIAL = ".partial"
_NAME = re.compile(r"step-(\d{6,})")


class CheckpointStore:
    """The checkpoints of one stage, under `root`.

    `keep_also` holds steps that are never removed, such as the best one.
    """

    def __init__(self, root: Path, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least the newest checkpoint stays")
        self.root = root
        self.keep = keep
        self.keep_also: set[int] = set()

    def path(self, step: int) -> Path:
        """Where the complete checkpoint of `step` lies."""
        return self.root / f"step-{step:06d}"

    @contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """A directory to fill, which becomes the checkpoint of `step` when the block ends.

        Other processes may fill it too, as long as they are done before the block ends. After an
        error nothing counts, and the next write removes the remains.

        Raises:
            FileExistsError: `step` has a complete checkpoint already.
        """
        partial = self._begin(step)
        yield partial
        self._commit(step, partial)

    def complete(self) -> list[int]:
        """The steps that have a complete checkpoint, in rising order."""
        if not self.root.is_dir():
            return []
        matches = [_NAME.fullmatch(entry.name) for entry in self.root.iterdir()]
        steps = sorted(int(match[1]) for match in matches if match)
        return [step for step in steps if is_complete(self.path(step))]

    def latest(self) -> tuple[int, Path] | None:
        """The newest complete checkpoint, if there is one."""
        steps = self.complete()
        return (steps[-1], self.path(steps[-1])) if steps else None

    def _begin(self, step: int) -> Path:
        target = self.path(step)
        if is_complete(target):
            raise FileExistsError(f"{target} is a complete checkpoint already")
        self.root.mkdir(parents=True, exist_ok=True)
        for remains in self.root.glob(f"*{_PARTIAL}"):
            shutil.rmtree(remains)
        if target.exists():
            # It lost a file after it was committed, and the rename needs its place.
            shutil.rmtree(target)
        partial = self.root / (target.name + _PARTIAL)
        partial.mkdir()
        return partial

    def _commit(self, step: int, partial: Path) -> None:
        files = {}
        for path in sorted(partial.rglob("*")):
            sync(path)
            if path.is_file():
                files[path.relative_to(partial).as_posix()] = path.stat().st_size
        marker = json.dumps({"step": step, "files": files}, indent=1)
        write_bytes(str((partial / _MARKER).absolute()), marker.encode())
        partial.rename(self.path(step))
        sync(self.root)
        self._prune()

    def _prune(self) -> None:
        for step in self.complete()[: -self.keep]:
            if step not in self.keep_also:
                # Renamed first, so that a crash leaves remains and no half checkpoint.
                doomed = self.path(step).rename(self.path(step).with_suffix(_PARTIAL))
                shutil.rmtree(doomed)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint's marker is there and every file it lists has its size."""
    try:
        files = json.loads((checkpoint / _MARKER).read_bytes())["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except FileNotFoundError:
        return False
