"""The lock of a run directory: one process writes there at a time, and says which it is."""

import fcntl
import os
import re
import socket
from pathlib import Path
from typing import IO, NamedTuple

from rayward.cluster.errors import InputError

LOCK = ".lock"
_OWNER = re.compile(r"process (\d+) on (\S+)\n")


class LockOwner(NamedTuple):
    """The process that last wrote in a run directory."""

    pid: int
    host: str

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()


def acquire(root: Path) -> IO[str]:
    """Lock a run directory for as long as the file that is returned stays open.

    The end of the process lets go of it too.

    Raises:
        InputError: another process is using it.
    """
    lock = (root / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise InputError(
            "--out", str(root), f"a run that no other process is using ({owner} is)"
        ) from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def owner_of(content: bytes) -> LockOwner | None:
    """Who wrote a lock's content; None where it was not `acquire`."""
    found = _OWNER.fullmatch(content.decode(errors="replace"))
    return None if found is None else LockOwner(int(found[1]), found[2])
