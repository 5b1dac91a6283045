"""Ray nodes with addresses of their own on this machine: each in a network namespace.

    outer namespace: a bridge, 10.77.0.1
        +-- node: 10.77.0.11   (head)
        +-- node: 10.77.0.12
        +-- ...

Nothing of it is seen outside the outer namespace, and nothing of it reaches any network. It takes
root, and a kernel that makes namespaces.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests import preloaded

_BIN = Path(sys.executable).parent
_PORT = 6379
_OBJECT_STORE_BYTES = 200_000_000
_START_TIMEOUT_S = 90.0


def why_no_namespaces() -> str | None:
    """Why this machine makes no network namespaces for us; None where it does."""
    tools = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if tools:
        return f"no {tools[0]}"
    tried = subprocess.run(
        ["unshare", "-n", "ip", "link", "add", "probe", "type", "veth"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"no namespaces: {tried.stderr.strip()}"


@dataclass
class Node:
    """A Ray node."""

    address: str
    """IPv4, the same on all nodes' networks."""
    namespace: int
    """The process that holds its network namespace."""
    raylet: subprocess.Popen[bytes] | None = None
    """`ray start`, and below it all that the node runs."""

    def kill(self) -> None:
        """As if the machine lost power: every process of the node at once."""
        assert self.raylet is not None
        network = _network(self.namespace)
        for process in psutil.process_iter():
            # Those that ended by themselves, and the machine's own that are shown to nobody.
            with suppress(psutil.NoSuchProcess, FileNotFoundError, PermissionError):
                if _network(process.pid) == network and process.pid != self.namespace:
                    process.kill()
        self.raylet.wait(60)


@dataclass
class RayNodes:
    """A Ray cluster over several namespaces, for a test that has the fixture `preloading`; a
    context manager.

    Args:
        folder: for logs and the cluster's token, and where all of Ray's processes work.
    """

    folder: Path
    nodes: list[Node] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "token").write_text("0123456789abcdef" * 4)
        # Sockets want a short path.
        self._ray_folder = tempfile.mkdtemp(prefix="ray-")
        self._stack.callback(shutil.rmtree, self._ray_folder, ignore_errors=True)
        self._outer = self._hold(["unshare", "-n"])
        self._inside(self._outer, "ip link set lo up")
        self._inside(self._outer, "ip link add bridge0 type bridge")
        self._inside(self._outer, "ip addr add 10.77.0.1/24 dev bridge0")
        self._inside(self._outer, "ip link set bridge0 up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for node in reversed(self.nodes):
            if node.raylet is not None and node.raylet.poll() is None:
                node.kill()
        self._stack.close()

    @property
    def address(self) -> str:
        """Of the head, for `--address`."""
        return f"{self.nodes[0].address}:{_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """For whoever joins."""
        return {
            **os.environ,
            # As in the image, where jobs find `rayward`.
            "PATH": f"{_BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start(
        self, cpus: int, labels: Mapping[str, str], environment: Mapping[str, str] | None = None
    ) -> Node:
        """Start a node; the first is the head.

        Args:
            cpus: logical CPUs that it offers.
            labels: what roles choose their node by.
            environment: variables for all that runs there.
        """
        number = len(self.nodes) + 1
        node = Node(f"10.77.0.{10 + number}", self._hold([*_enter(self._outer), "unshare", "-n"]))
        link = f"node{number}"
        self._inside(
            self._outer, f"ip link add {link} type veth peer name eth0 netns {node.namespace}"
        )
        self._inside(self._outer, f"ip link set {link} master bridge0 up")
        for command in (
            "ip link set lo up",
            f"ip addr add {node.address}/24 dev eth0",
            "ip link set eth0 up",
            "ip route add default via 10.77.0.1",
        ):
            self._inside(node.namespace, command)
        self.nodes.append(node)
        where = (
            [
                "--head",
                f"--port={_PORT}",
                f"--temp-dir={self._ray_folder}",
                "--dashboard-host=0.0.0.0",
            ]
            if number == 1
            else [f"--address={self.address}"]
        )
        written = ",".join(f"{name}={value}" for name, value in labels.items())
        # The head's dashboard is what jobs are submitted to.
        log = self._stack.enter_context((self.folder / f"node{number}.log").open("wb"))
        node.raylet = subprocess.Popen(
            [
                *_enter(node.namespace),
                *preloaded.command(
                    "start",
                    "--block",
                    *where,
                    f"--node-ip-address={node.address}",
                    f"--num-cpus={cpus}",
                    f"--labels={written}",
                    f"--object-store-memory={_OBJECT_STORE_BYTES}",
                    "--include-log-monitor=false",
                    program="ray",
                ),
            ],
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._wait_for(number)
        return node

    def command(self, *words: str) -> list[str]:
        """A command of Rayward's or Ray's, as it is run on the head."""
        program, *rest = words
        started = [str(_BIN / program), *rest]
        if program == "rayward":
            started = preloaded.command(*rest)
        return [*_enter(self.nodes[0].namespace), *started]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Rayward's, Ray's or Python's on the head, to its end."""
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            # Other clusters of this machine are seen too, by their processes.
            env={**self.environment, "RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            check=False,
        )

    def _wait_for(self, number: int) -> None:
        """Until a node is one of the cluster's."""
        until = time.monotonic() + _START_TIMEOUT_S
        raylet, log = self.nodes[number - 1].raylet, self.folder / f"node{number}.log"
        assert raylet is not None
        while "Ray runtime started." not in (said := log.read_text()):
            assert raylet.poll() is None, said[-2000:]
            assert time.monotonic() < until, said[-2000:]
            time.sleep(0.1)

    def _hold(self, command: Sequence[str]) -> int:
        """A process that keeps a new namespace; its id."""
        holder = subprocess.Popen([*command, "sleep", "infinity"])
        self._stack.callback(_end, holder)
        until = time.monotonic() + 10
        # `sleep` runs once the namespace is there.
        while psutil.Process(holder.pid).name() != "sleep":
            assert time.monotonic() < until, command
            time.sleep(0.01)
        return holder.pid

    def _inside(self, namespace: int, command: str) -> None:
        subprocess.run([*_enter(namespace), *command.split()], check=True)


def _enter(namespace: int) -> list[str]:
    return ["nsenter", "-t", str(namespace), "-n"]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)


def _network(process: int) -> str:
    """The network namespace of a process."""
    return os.readlink(f"/proc/{process}/ns/net")
