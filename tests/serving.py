"""A real `rayward serve` for tests: its process, its port, its keys."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
import yaml

from rayward.actors.models.loading import load_scalar_model, load_tokenizer, save_model
from rayward.cluster.types import AXES
from tests import preloaded
from tests.tiny import write_tiny_llama

RAYWARD = str(Path(sys.executable).parent / "rayward")
_SCALE = 30.0


def write_models(folder: Path) -> Path:
    """A tiny policy, and two reward models of its tokens whose logits reach about 10."""
    policy = write_tiny_llama(folder / "policy")
    tokenizer = load_tokenizer(str(policy))
    for seed, axis in enumerate(AXES):
        model = load_scalar_model(str(policy), "float32", seed)
        with torch.no_grad():
            model.score.weight.mul_(_SCALE)
        save_model(model, tokenizer, folder / axis)
    return folder


@dataclass
class Served:
    """A service that is up."""

    url: str
    folder: Path
    process: subprocess.Popen[str]
    ray_logs: Path
    """Where its Ray writes, the logs of all its processes among it."""
    keys: dict[tuple[str, ...], str] = field(default_factory=dict)

    @property
    def models(self) -> Path:
        """policy/, safety/ and helpfulness/."""
        return self.folder / "models"

    @property
    def runs_root(self) -> Path:
        """Where jobs leave their runs."""
        return self.folder / "runs"

    @property
    def log(self) -> Path:
        """What the service said."""
        return self.folder / "serve.log"

    def key(self, *scopes: str) -> str:
        """A key of these scopes, made on first use."""
        if scopes not in self.keys:
            options = [part for scope in scopes for part in ("--scope", scope)]
            self.keys[scopes] = rayward(
                "keys", "create", *options, "--file", str(self.folder / "keys.json")
            ).stdout.strip()
        return self.keys[scopes]

    @cached_property
    def raylet(self) -> psutil.Process:
        """Its Ray's."""
        for process in psutil.process_iter():
            # Others end meanwhile.
            with suppress(psutil.Error):
                if process.name() == "raylet" and str(self.ray_logs) in " ".join(process.cmdline()):
                    return process
        raise LookupError(f"no raylet writes to {self.ray_logs}")

    def processes(self, title: str) -> list[psutil.Process]:
        """Its Ray's processes whose title starts so, and nobody else's.

        Those that are forks are nobody's children here, but work where the others do.
        """
        found, place = [], self.raylet.cwd()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.cwd() == place and " ".join(process.cmdline()).startswith(title):
                    found.append(process)
        return found

    def client(self, *scopes: str) -> httpx.Client:
        """A client with a key of these scopes; with none, without a key."""
        headers = {"Authorization": f"Bearer {self.key(*scopes)}"} if scopes else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)


def rayward(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    done = subprocess.run([RAYWARD, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    folder: Path,
    document: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    forked: bool = False,
) -> Iterator[Served]:
    """`rayward serve` with a document for the time of the block, on a free port.

    Args:
        environment: more variables that it starts with.
        forked: whether its processes are forks, for a test that has the fixture `preloading`.
    """
    port = free_port()
    document = {**document, "http": {**document.get("http", {}), "port": port}}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(document))
    # Not below `folder`: Ray's sockets need a short path.
    ray_folder = Path(tempfile.mkdtemp(prefix="rw"))
    own = {**os.environ, "RAY_TMPDIR": str(ray_folder), **(environment or {})}
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [*(preloaded.command() if forked else [RAYWARD]), "serve", str(path)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=own,
        )
    served = Served(f"http://127.0.0.1:{port}", folder, process, ray_folder)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready, f"rayward serve ended: {served.log.read_text()[-4000:]}"
        assert json.loads(ready)["url"] == served.url
        yield served
        assert stop(process) == 0, served.log.read_text()[-4000:]
    finally:
        stop(process)
        shutil.rmtree(ray_folder, ignore_errors=True)


def stop(process: subprocess.Popen[str]) -> int:
    """Ctrl-C, and no patience without end; the exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
