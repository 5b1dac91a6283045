"""`rayward serve`: start what a document or a run's directory says, and say when it is ready.

settings -> checks -> Ray -> Serve application -> health check through the port -> ready
"""

import asyncio
import json
import logging
import os
import sys
import tempfile
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from rayward.cluster.config.load import load_serving, make_serving
from rayward.cluster.config.serving import ServingSettings
from rayward.cluster.errors import InputError, RunStopped
from rayward.cluster.progress import announce
from rayward.services.http.listener import check_listener

_APP = "rayward"
_PARTS = ("reward", "policy", "jobs")
# Roles of a job take turns, and few are busy at once: more logical CPUs than cores, by design.
_EMBEDDED_CPUS = 64
_READY_TIMEOUT_S = 120.0
_LOOK_EVERY_S = 5.0
_MARGIN_S = 10.0


def serve_command(
    document: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="What to serve: YAML.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Serve what the run in this directory made.")
    ] = None,
    reward: Annotated[bool, typer.Option("--reward", help="Serve the reward models.")] = False,
    policy: Annotated[bool, typer.Option("--policy", help="Serve the policy.")] = False,
    jobs: Annotated[bool, typer.Option("--jobs", help="Serve jobs.")] = False,
    host: Annotated[str | None, typer.Option(help="Listen here; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Listen here; default 8000.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Change one setting; may be repeated."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS", help="Of a running Ray cluster; default: an embedded Ray."
        ),
    ] = None,
) -> None:
    """Serve reward models, a policy and jobs over HTTP: all that is configured or named."""
    chosen = [part for part, on in zip(_PARTS, (reward, policy, jobs), strict=True) if on]
    settings = _settings(document, run, chosen, host, port, overrides)
    check_listener(settings)
    # What is imported logs what it finds of the machine, some of it to standard output.
    logging.disable(logging.WARNING)
    with redirect_stdout(sys.stderr):
        from rayward.cluster.ray_runtime.session import check_address
        from rayward.services.gateway import preflight
    logging.disable(logging.NOTSET)
    check_address(address)
    preflight.check(settings)
    try:
        _serve(settings, address)
    except KeyboardInterrupt as interrupt:
        raise RunStopped("interrupted before it was ready") from interrupt


def _settings(
    document: Path | None,
    run: Path | None,
    chosen: list[str],
    host: str | None,
    port: int | None,
    overrides: list[str] | None,
) -> ServingSettings:
    changes = [
        f"http.{name}={value}" for name, value in (("host", host), ("port", port)) if value
    ] + (overrides or [])
    if (document is None) == (run is None):
        raise InputError(
            "CONFIG", None, "a YAML file, or --run with a run's directory; one of both"
        )
    if document is not None:
        settings = load_serving(document, changes)
    else:
        from rayward.services.gateway.from_run import serving_of_run

        assert run is not None
        settings = make_serving(serving_of_run(run), changes)
    for part in chosen:
        if getattr(settings, part) is None:
            raise InputError(f"--{part}", None, f"{part} in the configuration, or in the run")
    kept = settings.model_dump(mode="json")
    for part in set(_PARTS) - set(chosen or _PARTS):
        kept[part] = None
    return make_serving(_absolute(kept), None)


def _absolute(kept: dict[str, Any]) -> dict[str, Any]:
    """Paths of what need not exist yet: jobs work elsewhere than where the service was started."""
    for section, name in (("jobs", "runs_root"), ("keys", "path")):
        value = (kept[section] or {}).get(name)
        if value is not None and "://" not in value:
            kept[section][name] = os.path.abspath(value)
    return kept


def _serve(settings: ServingSettings, address: str | None) -> None:
    from rayward.cluster.ray_runtime.session import ray_session
    from rayward.services.gateway.haproxy import serve_environment

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rayward-serve-") as folder:
        environment = serve_environment(Path(folder), embedded=address is None)
        # Serve reads them as it is imported.
        os.environ.update(environment)
        from ray import serve

        from rayward.services.gateway.app import application

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        announce("starting Ray")
        with ray_session(address, _EMBEDDED_CPUS, environment, dashboard=True):
            http = settings.http
            serve.start(
                # The gateway has its own time-outs, which no client can change; this one is
                # Serve's, for whatever the gateway might miss.
                http_options={
                    "host": http.host,
                    "port": http.port,
                    "request_timeout_s": settings.longest_request_s + 30,
                }
            )
            announce(f"starting {', '.join(_served(settings))}")
            serve.run(application(settings), name=_APP, route_prefix="/")
            _wait_until_ready(settings)
            _say_ready(settings, time.monotonic() - began)
            _wait_for_the_end()
            # Serve waits a minute for an application to go, and fails if it is still there.
            serve.delete(_APP, _blocking=_drained(settings))
    announce("stopped")


def _served(settings: ServingSettings) -> list[str]:
    return [part for part in _PARTS if getattr(settings, part) is not None]


def _url(settings: ServingSettings) -> str:
    host = settings.http.host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http.port}"


def _wait_until_ready(settings: ServingSettings) -> None:
    """Serve says that replicas stand; HAProxy learns of them a moment later."""
    import httpx

    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        try:
            answer = httpx.get(f"{_url(settings)}/ready", timeout=10)
        except httpx.TransportError as error:
            last = type(error).__name__
        else:
            if answer.status_code == 200:
                return
            last = f"status {answer.status_code}"
        if time.monotonic() > deadline:
            raise TimeoutError(f"{_url(settings)}/ready: {last} after {_READY_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


def _say_ready(settings: ServingSettings, seconds: float) -> None:
    url, parts = _url(settings), _served(settings)
    announce(f"ready after {seconds:.0f} s: {url} serves {', '.join(parts)}; docs at {url}/docs")
    key = "" if settings.keys.path is None else " -H 'Authorization: Bearer KEY'"
    asked = [{"role": "user", "content": "Hello"}]
    example: tuple[str, dict[str, Any] | None] = ("/v1/jobs", None)
    if settings.reward is not None:
        example = ("/v1/score", {"items": [{"messages": asked, "response": "Hi"}]})
    elif settings.policy is not None:
        example = ("/v1/chat/completions", {"model": "policy", "messages": asked})
    path, body = example
    sent = "" if body is None else f" -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    announce(f"try: curl {url}{path}{key}{sent}")
    announce("Ctrl-C stops it")
    print(json.dumps({"url": url, "serves": parts}), flush=True)


def _wait_for_the_end() -> None:
    """Until SIGINT or SIGTERM; meanwhile say when something is wrong."""
    import signal

    from ray import serve

    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    before = "RUNNING"
    while not end.wait(_LOOK_EVERY_S):
        status = serve.status().applications[_APP].status
        if status != before:
            announce(f"{_APP}: {status}")
        before = status


def _drained(settings: ServingSettings) -> bool:
    """Let requests that are under way come to their end; a second signal ends them.

    Returns:
        Whether all came to theirs.
    """
    import signal

    from ray.exceptions import RayError

    from rayward.services.http.replicas import without_replica

    announce("draining: requests that are under way are finished; Ctrl-C again ends them")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        if "gateway" in without_replica(_APP):
            return False  # the call would wait for one
        left = asyncio.run(_drain_gateway(settings.longest_request_s))
    except KeyboardInterrupt:
        announce("stopping at once")
        return False
    except (RayError, TimeoutError) as error:
        announce(f"the gateway does not answer any more ({type(error).__name__})")
        return False
    finally:
        # What comes now takes seconds, and leaves processes behind where it is not finished.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if left:
        announce(f"{left} requests took too long")
    return not left


async def _drain_gateway(longest_s: float) -> int:
    """How many requests are left in work; in throughput mode Serve's handles need an event loop."""
    from ray import serve

    # It complains that its handle lives longer than the loop.
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    async with asyncio.timeout(longest_s + _MARGIN_S):
        left: int = await serve.get_app_handle(_APP).drain.remote(longest_s)
    return left
