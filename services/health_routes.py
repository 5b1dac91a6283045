"""Whether the service stands, and its numbers for Prometheus."""

import asyncio

import httpx
from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict

from cluster.trackers.ray_gauges import metrics_address
from services.access import needs
from services.backends import Backends
from services.errors import documented, unavailable

# Of the numbers of a node: the service's own, Serve's and the engine's.
_SHOWN = ("ray_rayward_", "ray_serve_", "ray_vllm")
_PROMETHEUS = "text/plain; version=0.0.4"
_AGENT_TIMEOUT_S = 10.0


class Health(BaseModel):
    """The gateway answers, and these parts are served."""

    model_config = ConfigDict(extra="forbid")

    status: str
    """Always `ok`; a gateway that is not well does not answer."""
    serves: list[str]
    """Of `reward`, `policy` and `jobs` those that are served."""


def health_routes(backends: Backends) -> APIRouter:
    """`/health` and `/metrics`."""
    router = APIRouter(tags=["health"])
    # One for all requests: making one takes tens of milliseconds.
    agent = httpx.AsyncClient(timeout=_AGENT_TIMEOUT_S, trust_env=False)
    parts = {
        "reward": bool(backends.reward),
        "policy": backends.policy is not None,
        "jobs": backends.jobs is not None,
    }
    answer = Health(status="ok", serves=[part for part, served in parts.items() if served])

    @router.get("/health")
    async def health() -> Health:
        """Whether the service answers. Needs no key."""
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
        retry_after_s = backends.settings.http.retry_after_s
        if address is None:
            raise unavailable("this node's Ray has no metrics agent", retry_after_s)
        try:
            text = (await agent.get(address)).raise_for_status().text
        except httpx.HTTPError as error:
            reason = f"Ray's metrics agent does not answer ({type(error).__name__})"
            raise unavailable(reason, retry_after_s) from error
        return PlainTextResponse(shown(text), media_type=_PROMETHEUS)

    return router


def shown(text: str) -> str:
    """The lines of a node's metrics that are the service's business, with their comments."""
    lines = (line for line in text.splitlines() if line)
    kept = (line for line in lines if _metric_of(line).startswith(_SHOWN))
    return "".join(f"{line}\n" for line in kept)


def _metric_of(line: str) -> str:
    """`# HELP name ...` and `name{...} 1.0` are both of `name`."""
    words = line.split(" ", 3)
    return words[2] if words[0] == "#" and len(words) > 2 else words[0]
