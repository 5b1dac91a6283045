"""Whether the service stands, and its numbers for Prometheus."""

import asyncio

import httpx
from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from rayward.cluster.trackers.ray_gauges import metrics_address
from rayward.services.http.access import needs
from rayward.services.http.backends import Backends
from rayward.services.http.errors import documented, unavailable
from rayward.services.http.replicas import without_replica

# Of the numbers of a node: the service's own, Serve's and the engine's.
_SHOWN = ("ray_rayward_", "ray_serve_", "ray_vllm")
_PROMETHEUS = "text/plain; version=0.0.4"
_AGENT_TIMEOUT_S = 10.0
# Serve itself looks after its replicas every other second.
_KNOWN_FOR_S = 2.0
_CONTROLLER_TIMEOUT_S = 5.0


class Health(BaseModel):
    """The gateway answers, and these parts are served."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    status: str
    """Always `ok`; what is not well does not answer, or answers with 503."""
    serves: list[str]
    """Of `reward`, `policy` and `jobs` those that are served."""


def health_routes(backends: Backends) -> APIRouter:
    """`/health`, `/ready` and `/metrics`."""
    router = APIRouter(tags=["health"])
    # One for all requests: making one takes tens of milliseconds.
    agent = httpx.AsyncClient(timeout=_AGENT_TIMEOUT_S, trust_env=False)
    served = {
        "reward": bool(backends.reward),
        "policy": backends.policy is not None,
        "jobs": backends.jobs is not None,
    }
    answer = Health(status="ok", serves=[part for part, is_served in served.items() if is_served])
    parts = _Parts()
    retry_after_s = backends.settings.http.retry_after_s

    @router.get("/health")
    async def health() -> Health:
        """Whether the gateway answers, whatever its parts do: one that does not is to be replaced.

        Needs no key.
        """
        return answer

    @router.get("/ready", responses=documented(503))
    async def ready() -> Health:
        """Whether every part has a replica that stands, to within seconds. Needs no key."""
        try:
            missing = await parts.missing()
        except (RayError, RayServeException, TimeoutError) as error:
            reason = f"Serve's controller does not answer ({type(error).__name__})"
            raise unavailable(reason, retry_after_s) from error
        if missing:
            raise unavailable(f"no replica stands of: {', '.join(missing)}", retry_after_s)
        return answer

    @router.get(
        "/metrics",
        dependencies=[Depends(needs("admin"))],
        response_class=PlainTextResponse,
        responses=documented(401, 403, 429, 503),
    )
    async def metrics() -> PlainTextResponse:
        """The numbers of the gateway's node, as Prometheus reads them."""
        # Ray answers from another process, and blocks until it does.
        address = await asyncio.to_thread(metrics_address)
        if address is None:
            raise unavailable("this node's Ray has no metrics agent", retry_after_s)
        try:
            text = (await agent.get(address)).raise_for_status().text
        except httpx.HTTPError as error:
            reason = f"Ray's metrics agent does not answer ({type(error).__name__})"
            raise unavailable(reason, retry_after_s) from error
        return PlainTextResponse(shown(text), media_type=_PROMETHEUS)

    return router


class _Parts:
    """What Serve's controller says of the service's parts, asked once for all who want to know."""

    def __init__(self) -> None:
        self._asked: asyncio.Future[list[str]] | None = None
        self._at = 0.0

    async def missing(self) -> list[str]:
        """The parts of which no replica stands.

        Raises:
            RayError, RayServeException, TimeoutError: the controller does not say.
        """
        now = asyncio.get_running_loop().time()
        # A controller that is away keeps its thread waiting: no further one joins it.
        if self._asked is None or (self._asked.done() and now - self._at > _KNOWN_FOR_S):
            self._asked = asyncio.ensure_future(asyncio.to_thread(missing_parts))
            self._at = now
        async with asyncio.timeout(_CONTROLLER_TIMEOUT_S):
            return await asyncio.shield(self._asked)


def missing_parts() -> list[str]:
    """The deployments of this replica's own application of which no replica stands."""
    return without_replica(serve.get_replica_context().app_name)


def shown(text: str) -> str:
    """The lines of a node's metrics that are the service's business, with their comments."""
    lines = (line for line in text.splitlines() if line)
    kept = (line for line in lines if _metric_of(line).startswith(_SHOWN))
    return "".join(f"{line}\n" for line in kept)


def _metric_of(line: str) -> str:
    """`# HELP name ...` and `name{...} 1.0` are both of `name`."""
    words = line.split(" ", 3)
    return words[2] if words[0] == "#" and len(words) > 2 else words[0]
