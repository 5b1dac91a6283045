"""The Serve application: a gateway, and behind it the deployments that the settings name.

    gateway (HTTP) ─┬─► safety, helpfulness   reward models, each its own deployment
                    ├─► policy                vLLM
                    └─► jobs                  on Ray's job submission API

`rayward.services.gateway.app:build` is the import path for Serve's own configuration
files; its arguments are those of `rayward serve`.
"""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send

from rayward.cluster.config.load import parse_serving
from rayward.cluster.config.serving import (
    HttpSettings,
    JobServiceSettings,
    RewardServiceSettings,
    ServingSettings,
)
from rayward.cluster.types import AXES, Axis
from rayward.services.gateway.api import make_api
from rayward.services.http.access import Access
from rayward.services.http.backends import Backends
from rayward.services.http.keys import require_keys
from rayward.services.http.limits import InWork
from rayward.services.http.prometheus import count_from_zero
from rayward.services.http.replicas import actor_options, life
from rayward.services.jobs.service import JobService
from rayward.services.policy.server import policy_deployment
from rayward.services.rewards.server import RewardServer

# Its stubs know no deployment of a class that is no decorator's.
_deployment: Any = serve.deployment
# Of a deployment's requests Serve counts those that a replica has taken, which must all be there
# to be put into batches, and those that wait for a replica.
_TAKEN = 4096


class Gateway:
    """Answers HTTP.

    Args:
        settings: what is served, as JSON.
        reward: the reward models' deployments, by axis.
        policy, jobs: the other deployments, where there are any.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        reward: dict[Axis, DeploymentHandle],
        policy: DeploymentHandle | None,
        jobs: DeploymentHandle | None,
    ) -> None:
        self._backends = Backends(parse_serving(settings), reward, policy, jobs)
        # Serve's own configuration files say where to listen in their own way.
        client = _get_global_client()
        assert client is not None
        require_keys(self._backends.settings.keys, client.http_config.host)
        self._in_work = InWork()
        count_from_zero(gate="safety" in reward, guard=bool(policy and reward))

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve asks for the app once the replica stands."""
        api = make_api(self._backends, Access(self._backends.settings.keys), self._in_work)

        # Serve would put handlers of its own, without our body, into a FastAPI that it sees.
        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            await api(scope, receive, send)

        return door

    async def drain(self, timeout_s: float) -> int:
        """Let no request in any more and wait for those in work; how many are left after that.

        Serve stops all deployments at the same time, when a guarded answer may still need its
        scores; so whoever stops the service asks for this first.
        """
        return await self._in_work.drain(timeout_s)


def build(arguments: dict[str, Any]) -> Application:
    """The application of a serving document.

    Raises:
        InputError: a setting is unknown or wrong.
    """
    return application(parse_serving(arguments))


def application(settings: ServingSettings) -> Application:
    """The application of settings that are parsed."""
    gateway = _deployment(
        serve.ingress()(Gateway),
        name="gateway",
        max_ongoing_requests=_TAKEN,
        max_queued_requests=_TAKEN,
        ray_actor_options={"num_cpus": 0},
        **life(settings.longest_request_s),
    )
    http = settings.http
    return gateway.bind(
        settings.model_dump(mode="json"),
        _reward_models(settings.reward, http) if settings.reward else {},
        policy_deployment(settings.policy, http) if settings.policy else None,
        _jobs(settings.jobs, http) if settings.jobs else None,
    )


def _reward_models(settings: RewardServiceSettings, http: HttpSettings) -> dict[Axis, Application]:
    models = {axis: getattr(settings, axis) for axis in AXES}
    return {
        axis: _deployment(
            RewardServer,
            name=axis,
            num_replicas=model.replicas,
            max_ongoing_requests=model.max_queued_items,
            max_queued_requests=model.max_queued_items,
            ray_actor_options=actor_options(model.resources),
            **life(http.request_timeout_s),
        ).bind(axis, model, settings.policy, settings.deterministic)
        for axis, model in models.items()
        if model is not None
    }


def _jobs(settings: JobServiceSettings, http: HttpSettings) -> Application:
    return _deployment(
        JobService,
        name="jobs",
        max_ongoing_requests=_TAKEN,
        max_queued_requests=_TAKEN,
        # Ray starts jobs on the head, whose disk this replica shares with them.
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
        **life(http.request_timeout_s),
    ).bind(settings)
