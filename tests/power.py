"""What a power cut would leave: in which order things reach the disk and get their names."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Event(NamedTuple):
    """Something that was synced, or that got a name."""

    kind: str
    path: Path
    size: int | None
    """Of a file that was synced, as it was then."""


class Disk:
    """Keeps what this process syncs and renames; both are done all the same."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[Event] = []
        fsync, rename, replace = os.fsync, os.rename, os.replace

        def synced(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            size = os.fstat(descriptor).st_size if path.is_file() else None
            self.events.append(Event("sync", path, size))

        def renamed(source: Any, target: Any) -> None:  # noqa: ANN401 (as os has it)
            rename(source, target)
            self.events.append(Event("rename", Path(target), None))

        def replaced(source: Any, target: Any) -> None:  # noqa: ANN401
            replace(source, target)
            self.events.append(Event("rename", Path(target), None))

        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "rename", renamed)
        patch.setattr(os, "replace", replaced)

    def before(self, target: Path) -> list[Event]:
        """What was synced before `target` got its name."""
        return self.events[: self._named(target)]

    def after(self, target: Path) -> list[Path]:
        """What was synced after that."""
        return [one.path for one in self.events[self._named(target) :] if one.kind == "sync"]

    def _named(self, target: Path) -> int:
        names = [one.path if one.kind == "rename" else None for one in self.events]
        return names.index(target)
