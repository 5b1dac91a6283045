"""The one door: every HTTP request comes in here, and is let in, bounded, and passed on.

request -> measured -> body limit -> known, at its rate? -> room -> scope -> route -> answer
"""

from fastapi import FastAPI

from rayward.services.gateway.health import health_routes
from rayward.services.gateway.models import models_routes
from rayward.services.http.access import Access, KnownFirst
from rayward.services.http.backends import Backends
from rayward.services.http.errors import handle_errors
from rayward.services.http.limits import BodyLimit, InWork, Room
from rayward.services.http.prometheus import Measured
from rayward.services.jobs.routes import job_routes
from rayward.services.policy.routes import policy_routes
from rayward.services.rewards.compat import drop_in_routes
from rayward.services.rewards.routes import reward_routes


def make_api(backends: Backends, access: Access, in_work: InWork | None = None) -> FastAPI:
    """The whole HTTP API of what is served.

    Args:
        in_work: where requests are counted, for who wants to wait until there are none.
    """
    http = backends.settings.http
    api = FastAPI(title="Rayward", description="Reward scoring, a guarded policy, and jobs.")
    api.state.access = access
    # The last that is added is the first that sees a request.
    api.add_middleware(
        Room,
        limit=http.max_requests_in_work,
        event_streams=http.max_event_streams,
        retry_after_s=http.retry_after_s,
        in_work=in_work or InWork(),
    )
    # Who may not ask, or not so often, is told so before the body is read.
    api.add_middleware(KnownFirst)
    api.add_middleware(BodyLimit, limit=http.max_body_bytes, timeout_s=http.request_timeout_s)
    api.add_middleware(Measured)
    api.include_router(health_routes(backends))
    api.include_router(models_routes(backends))
    bad_request: dict[str, int] = {}
    if backends.reward:
        api.include_router(reward_routes(backends))
        api.include_router(drop_in_routes(backends))
    if backends.policy is not None:
        api.include_router(policy_routes(backends))
        # OpenAI's word for bad input.
        bad_request = dict.fromkeys(("/v1/chat/completions", "/v1/completions"), 400)
    if backends.jobs is not None:
        api.include_router(job_routes(backends))
    handle_errors(api, http.retry_after_s, bad_request)
    return api
