"""Joining a cluster that runs already, with the token that it asks for."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

JOIN = """
import sys
import ray
from rayward.cluster.ray_runtime.session import ray_session
with ray_session(sys.argv[1], 1.0):
    print("cpus", ray.cluster_resources()["CPU"])
"""
CPUS = 7  # a number that no embedded Ray would choose here


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a Ray head of this test's own, and an environment that knows its token."""
    # Of its own too: Ray notes there which cluster runs on this machine. Its sockets want a short
    # path, which pytest's is not.
    ray_folder = tempfile.mkdtemp(prefix="ray-")
    (tmp_path / "token").write_text("0123456789abcdef" * 4)
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    environment.pop("RAY_AUTH_MODE", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray_command = str(Path(sys.executable).with_name("ray"))
    arguments = ["start", "--head", "--block", f"--port={port}", f"--num-cpus={CPUS}"]
    head = subprocess.Popen(
        [ray_command, *arguments, "--include-dashboard=false", f"--temp-dir={ray_folder}"],
        env={**environment, "RAY_AUTH_MODE": "token"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
        head.poll()
        assert head.returncode is None, "ray start ended"
    yield f"127.0.0.1:{port}", environment
    head.terminate()
    head.wait(timeout=60)
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.mark.engine
@pytest.mark.slow
def test_the_token_is_carried(cluster: tuple[str, dict[str, str]]) -> None:
    address, environment = cluster
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert f"cpus {float(CPUS)}" in done.stdout, done.stderr[-2000:]
