"""Who gets in: keys with scopes and rates, or without keys only this machine."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette import types

from rayward.cluster.config.serving import KeySettings
from rayward.services.http.errors import ApiError, error_response
from rayward.services.http.keys import Key, KeyRing, Scope, is_loopback
from rayward.services.http.prometheus import count_access_refused

# Whoever may come in anyway, and a browser, which cannot send a key before it has the page.
_OPEN_PATHS = {"/health", "/ready", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}

_Credentials = HTTPAuthorizationCredentials | None
_bearer = HTTPBearer(
    auto_error=False, scheme_name="key", description="A key of `rayward keys create`."
)


class Access:
    """Decides who gets in. A FastAPI application holds one at `app.state.access`.

    Args:
        settings: where the keys are; without a file of keys only this machine gets in.

    Raises:
        InputError: the file of keys is not there or no key file.
    """

    def __init__(self, settings: KeySettings) -> None:
        self._ring = None
        if settings.path is not None:
            self._ring = KeyRing(settings.path)
            self._ring.require()
        self._rate = settings.requests_per_minute
        # Two counters a key, however much it may ask.
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def admit(self, request: Request, credentials: _Credentials) -> None:
        """Let a request in that has a key and keeps to the key's rate; call it once for each.

        Raises:
            ApiError: 401, 403 or 429.
        """
        key = self.known(request, credentials)
        if key is None:
            return
        rate = RateLimitItemPerMinute(key.requests_per_minute or self._rate)
        if not await self._limiter.hit(rate, key.id):
            window = await self._limiter.get_window_stats(rate, key.id)
            wait_s = max(1, math.ceil(window.reset_time - time.time()))
            headers = {"Retry-After": str(wait_s)}
            raise _refusal(429, f"this key may ask {rate.amount} times a minute", headers)

    def require(self, request: Request, credentials: _Credentials, scope: Scope) -> None:
        """Refuse a request whose key lacks `scope`.

        Raises:
            ApiError: 401 or 403.
        """
        key = self.known(request, credentials)
        if key is not None and not key.allows(scope):
            raise _refusal(403, f"this key lacks the scope {scope!r}")

    def known(self, request: Request, credentials: _Credentials) -> Key | None:
        """The key that a request came with; None where none is asked for.

        Raises:
            ApiError: 401, no such key is known; 403, it comes from elsewhere without one.
        """
        if self._ring is None:
            self._require_here(request)
            return None
        headers = {"WWW-Authenticate": "Bearer"}
        if credentials is None:
            raise _refusal(401, "a key is needed: Authorization: Bearer rw_...", headers)
        key = self._ring.find(credentials.credentials)
        if key is None:
            raise _refusal(401, "this key is not known, or was revoked", headers)
        return key

    def _require_here(self, request: Request) -> None:
        # A page of somebody else's, in a browser on this machine, asks by another name.
        origin = urlsplit(request.headers.get("origin", "http://localhost")).hostname
        if not is_loopback(request.url.hostname or "") or not is_loopback(origin or ""):
            raise _refusal(403, "no keys are configured, so only localhost may be asked")
        # A proxy on this machine that serves others says for whom it asks.
        if "forwarded" in request.headers or "x-forwarded-for" in request.headers:
            raise _refusal(403, "no keys are configured, so no proxy may ask for others")
        # Serve's proxy comes from this machine too, so it must not listen to others.
        if request.client is None or not is_loopback(request.client.host):
            raise _refusal(403, "no keys are configured, so only this machine may ask")


def needs(scope: Scope) -> Callable[..., Awaitable[None]]:
    """A FastAPI dependency that lets requests in whose key has `scope`."""

    async def require(
        request: Request, credentials: Annotated[_Credentials, Depends(_bearer)]
    ) -> None:
        access: Access = request.app.state.access
        access.require(request, credentials, scope)

    return require


async def caller(
    request: Request, credentials: Annotated[_Credentials, Depends(_bearer)]
) -> str | None:
    """A FastAPI dependency: the id of the key that a request came with, if keys are asked for."""
    access: Access = request.app.state.access
    key = access.known(request, credentials)
    return None if key is None else key.id


class KnownFirst:
    """ASGI middleware that refuses whoever is not known, or asks too often, before a byte of the
    body is read.

    FastAPI reads and parses a body before it asks a dependency, so strangers could keep the
    service busy with parsing, and those with a key go beyond its rate. What a key may do is for
    `needs` to say.

    Args:
        app: the rest of the application.
    """

    def __init__(self, app: types.ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            access: Access = scope["app"].state.access
            request = Request(scope)
            try:
                await access.admit(request, await _bearer(request))
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refusal(status: int, message: str, headers: dict[str, str] | None = None) -> ApiError:
    count_access_refused(status)
    return ApiError(status, message, headers=headers)
