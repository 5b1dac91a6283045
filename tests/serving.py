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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml

from actors.models import load_scalar_model, load_tokenizer, save_model
from cluster.types import AXES
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
    folder: Path, document: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """`rayward serve` with a document for the time of the block, on a free port."""
    port = free_port()
    document = {**document, "http": {**document.get("http", {}), "port": port}}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(document))
    # Not below `folder`: Ray's sockets need a short path.
    ray_folder = Path(tempfile.mkdtemp(prefix="rw"))
    own = {**os.environ, "RAY_TMPDIR": str(ray_folder), **(environment or {})}
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [RAYWARD, "serve", str(path)],
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
    finally:
        stop(process)
        shutil.rmtree(ray_folder, ignore_errors=True)


def stop(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, and no patience without end."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
