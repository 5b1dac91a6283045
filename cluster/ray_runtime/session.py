"""Joining a Ray cluster, or starting an embedded one."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partialmethod
from pathlib import Path
from urllib.parse import urlsplit

import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.parameter import RayParams
from ray.job_config import JobConfig

from rayward.cluster.errors import InputError

_PROBE_TIMEOUT_S = 4.5
_EXPECTED = "host:port or ray://host:port of a running Ray cluster"


@contextmanager
def ray_session(
    address: str | None,
    cpus: float,
    environment: Mapping[str, str] | None = None,
    dashboard: bool = False,
) -> Iterator[None]:
    """A Ray session for the time of the block.

    Args:
        address: of a running cluster (`host:port`, `ray://host:port` or `auto`, the one on this
            machine), or None to start one.
        cpus: logical CPUs that the run's roles ask for. An embedded Ray declares at least these,
            because its roles take turns: more processes than cores is by design.
        environment: variables for this process and every process of the session.
        dashboard: start an embedded Ray's dashboard too, whose API jobs are submitted to.

    Raises:
        InputError: nothing answers at the address.
    """
    check_address(address)
    on_terminate = signal.getsignal(signal.SIGTERM)
    # Ray's metrics agents and usage report do nothing for an embedded session but start slowly.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # DeepSpeed's compiled op lives with the environment that `make setup` built it in.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    # To load it, ninja must be on the path, also for who calls `rayward` by its place.
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", "")])
    os.environ.update(environment or {})
    if address is None:
        with _agents_choose_their_port() if dashboard else nullcontext():
            ray.init(
                address="local",
                num_cpus=max(int(cpus + 0.999), os.cpu_count() or 1),
                include_dashboard=dashboard,
                job_config=_job_config(),
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
    else:
        # Clusters ask for a token unless told not to, but a driver that joins one at an address
        # does not send its own; this is how Ray itself turns that on, where there is a token.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        try:
            ray.init(
                address=address,
                job_config=_job_config(),
                log_to_driver=False,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": dict(environment)} if environment else None,
            )
        except ConnectionError as error:
            expected = f"{_EXPECTED}, and its token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            raise InputError("--address", address, f"{expected} ({error})") from error
    # Ray puts a handler of its own in place of whoever wanted to be told.
    if callable(on_terminate) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        ray.shutdown()


def _job_config() -> JobConfig:
    """Workers look for modules where they are installed.

    Without this Ray puts the driver's working directory first on their path, where a user's own
    `queue.py` would stand in for a library's. Nothing else hangs on this field of a driver's.
    """
    return JobConfig(_client_job=True)


@contextmanager
def _agents_choose_their_port() -> Iterator[None]:
    """Start Ray with job agents on free ports, for which `ray.init` has no argument.

    By default they listen on a fixed one. A second Ray on the machine finds it taken, logs that,
    and never starts a job.
    """
    before = RayParams.__init__
    init = partialmethod(before, dashboard_agent_listen_port=0)
    RayParams.__init__ = init  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        RayParams.__init__ = before  # type: ignore[method-assign]


def check_address(address: str | None) -> None:
    """Ask whether a Ray listens; Ray itself waits minutes where none does.

    Args:
        address: as for `ray_session`; None and "auto" have nothing to ask.

    Raises:
        InputError: it is no address, or no Ray answers there within 5 seconds.
    """
    if address is None or address == "auto":
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError("--address", address, _EXPECTED) from error
    if not host or not port:
        raise InputError("--address", address, _EXPECTED)
    deadline = time.monotonic() + _PROBE_TIMEOUT_S
    try:
        socket.create_connection((host, port), timeout=_PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise InputError("--address", address, f"{_EXPECTED}; nothing answers ({error})") from error
    # gRPC takes a second to import, which only those pay who name an address.
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    # Ray's head and its client server both speak gRPC, with TLS where Ray is told to use it.
    channel = init_grpc_channel(parts.netloc)
    try:
        left = max(deadline - time.monotonic(), 1.0)
        grpc.channel_ready_future(channel).result(timeout=left)
    except grpc.FutureTimeoutError as error:
        expected = f"{_EXPECTED}; what answers there is no Ray"
        raise InputError("--address", address, expected) from error
    finally:
        channel.close()
