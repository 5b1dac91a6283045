"""Who keeps the jobs of a runs root: one service at a time, however many are started on it.

RUNS_ROOT/.jobs/lease.json   who does; written again every few seconds, gone when it is let go

Not every store can write under a condition, so whoever takes the lease waits a little, and reads
it back. Who holds it and cannot say so for long stops by itself, before anybody else may begin.
"""

import asyncio
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from rayward.cluster.atomic import join, write_bytes
from rayward.services.http.errors import ApiError, unavailable
from rayward.services.jobs.files import read_if_there
from rayward.services.jobs.records import FOLDER
from rayward.services.jobs.runs import RunsRoot

_NAME = "lease.json"
_RENEW_EVERY_S = 3.0
_LOOK_EVERY_S = 2.0
_SETTLE_S = 1.0
# Less than `_EXPIRED_S`, so that clocks that run apart, and a write that is slow, do no harm.
_HELD_S = 20.0
_EXPIRED_S = 30.0
_RETRY_AFTER_S = 10

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class LeaseLost(Exception):
    """Another service keeps the jobs now, or this one could not say for long that it does."""


class _Holder(BaseModel):
    """The service that keeps the jobs, as it says itself."""

    model_config = ConfigDict(frozen=True)

    id: str
    pid: int
    pids: str
    """Where the process id means something: one host may have containers with ids of their own."""
    host: str
    renewed: datetime
    """For people: the clocks of two machines differ."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_gone(self) -> bool:
        """Whether it was a process of this machine, and is no more."""
        is_here = (self.host, self.pids) == (socket.gethostname(), _pids())
        return is_here and not os.path.exists(f"/proc/{self.pid}")


class Lease:
    """The right to keep the jobs of a runs root.

    Args:
        root: where the runs are.
    """

    def __init__(self, root: RunsRoot) -> None:
        self._root = root
        self._id = uuid.uuid4().hex
        self._until = -math.inf  # monotonic seconds
        self._seen: bytes | None = None
        self._seen_first = time.monotonic()
        self._other: str | None = None
        self._writing = threading.Lock()
        # Of its own: it must not wait behind whatever else waits for disks and for Ray.
        self._thread = ThreadPoolExecutor(1)

    @property
    def is_held(self) -> bool:
        """Whether it is ours, at this moment."""
        return time.monotonic() < self._until

    @property
    def other(self) -> str | None:
        """Who else has it; None where nobody is known to."""
        return self._other

    def require(self) -> None:
        """Refuse to go on without it.

        Raises:
            LeaseLost: it is not ours.
        """
        if not self.is_held:
            raise LeaseLost(self._other or "nobody is known to keep the jobs")

    def refusal(self) -> ApiError:
        """503, and who has it."""
        keeper = "no service yet" if self._other is None else self._other
        return unavailable(
            f"{keeper} keeps the jobs of this runs root, so this service changes none",
            _RETRY_AFTER_S,
            "kept_elsewhere",
        )

    async def take(self) -> None:
        """Wait until it is ours."""
        while True:
            try:
                if await self._in_thread(self.try_to_take):
                    return
            except OSError as error:
                logger.warning("the lease on jobs: %s", error)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def keep(self) -> None:
        """Renew it until it is lost."""
        while self.is_held:
            await asyncio.sleep(_RENEW_EVERY_S)
            try:
                await self._in_thread(self.renew)
            except OSError as error:
                logger.warning("the lease on jobs: %s", error)

    def try_to_take(self) -> bool:
        """Take it if nobody has it; blocks for as long as others have to take it as well."""
        if not self._is_free():
            return False
        began = time.monotonic()
        self._write()
        time.sleep(_SETTLE_S)
        if not self._is_own():
            return False
        self._until = began + _HELD_S
        return True

    def renew(self) -> None:
        """Say again that it is ours, unless it no longer is. Blocks."""
        with self._writing:
            began = time.monotonic()
            if not self._is_own():
                self._until = -math.inf
            # To read may have taken so long that another may have it by now.
            if self.is_held:
                self._write()
                self._until = began + _HELD_S

    def release(self) -> None:
        """Let it go, so that the next one need not wait. Blocks."""
        with self._writing:
            if not self.is_held:
                return
            self._until = -math.inf
            try:
                if self._is_own():
                    self._root.filesystem.delete_file(f"{self._root.path}/{FOLDER}/{_NAME}")
            except OSError as error:
                logger.warning("the lease on jobs: %s", error)

    def _is_free(self) -> bool:
        found = self._read()
        if found != self._seen:
            self._seen, self._seen_first = found, time.monotonic()
        holder = None if found is None else _holder(found)
        # By this clock alone: another machine's may be minutes away.
        is_silent = time.monotonic() - self._seen_first >= _EXPIRED_S
        if found is None or is_silent or (holder and (holder.id == self._id or holder.is_gone())):
            self._other = None
            return True
        other = "somebody unknown" if holder is None else str(holder)
        if other != self._other:
            self._other = other
            logger.warning("%s keeps the jobs of this runs root; this service waits", other)
        return False

    def _is_own(self) -> bool:
        holder = _holder(self._read() or b"")
        if holder is not None and holder.id == self._id:
            return True
        self._other = None if holder is None else str(holder)
        return False

    def _read(self) -> bytes | None:
        return read_if_there(self._root.filesystem, f"{self._root.path}/{FOLDER}/{_NAME}")

    def _write(self) -> None:
        own = _Holder(
            id=self._id,
            pid=os.getpid(),
            pids=_pids(),
            host=socket.gethostname(),
            renewed=datetime.now(UTC),
        )
        write_bytes(join(self._root.uri, FOLDER, _NAME), own.model_dump_json(indent=1).encode())

    async def _in_thread(self, method: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, method)


def _holder(data: bytes) -> _Holder | None:
    try:
        return _Holder.model_validate_json(data)
    except ValueError:
        return None


def _pids() -> str:
    return os.readlink("/proc/self/ns/pid")
