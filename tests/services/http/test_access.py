"""Who gets in: scopes, rates, strangers, and other machines."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from fastapi import Depends, FastAPI
from pydantic import BaseModel
from starlette.types import ASGIApp

from rayward.cluster.config.load import parse_serving
from rayward.cluster.config.serving import KeySettings
from rayward.cluster.errors import InputError
from rayward.services.gateway.models import models_routes
from rayward.services.http.access import Access, KnownFirst, needs
from rayward.services.http.backends import Backends
from rayward.services.http.errors import documented, handle_errors
from rayward.services.http.keys import (
    SCOPES,
    Scope,
    create_key,
    is_loopback,
    require_keys,
    revoke_key,
)
from tests.loopback import listening


class Item(BaseModel):
    text: str


def make_app(settings: KeySettings, known_first: bool = True) -> FastAPI:
    """A route for each scope, as the service has them."""
    app = FastAPI()
    app.state.access = Access(settings)
    if known_first:
        app.add_middleware(KnownFirst)
    for scope in SCOPES:

        @app.post(
            f"/{scope}", dependencies=[Depends(needs(scope))], responses=documented(401, 403, 429)
        )
        async def route(item: Item) -> Item:
            return item

    @app.get("/health")
    async def health() -> str:
        return "ok"

    handle_errors(app, 1, {})
    return app


def ask(
    app: ASGIApp,
    path: str,
    token: str | None = None,
    peer: str = "127.0.0.1",
    headers: Mapping[str, str] | None = None,
    content: bytes = b'{"text": "hello"}',
) -> httpx.Response:
    """One request that comes from `peer`."""

    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(peer, 4711))
        own = {} if token is None else {"Authorization": f"Bearer {token}"}
        own |= {"Content-Type": "application/json", **(headers or {})}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, content=content, headers=own)

    return asyncio.run(one())


@pytest.fixture
def settings(tmp_path: Path) -> KeySettings:
    path = tmp_path / "keys.json"
    create_key(path, ["jobs:write"])
    return KeySettings(path=str(path))


def new_key(settings: KeySettings, *scopes: Scope, rate: int | None = None) -> str:
    assert settings.path is not None
    return create_key(Path(settings.path), scopes, None, rate)[1]


def test_a_key_opens_what_its_scopes_say(settings: KeySettings) -> None:
    app = make_app(settings)
    for owned in SCOPES:
        token = new_key(settings, owned)
        for needed in SCOPES:
            answer = ask(app, f"/{needed}", token)
            assert (answer.status_code == 200) == (owned in (needed, "admin"))
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert answer.status_code == 403
                assert error["type"] == "permission_error"
                assert repr(needed) in error["message"]


@pytest.mark.parametrize("known_first", [True, False])
@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic {}",
        "{}",
        "Bearer {}x",
        "Bearer x {}",
        "bearer,{}",
    ],
)
def test_strangers_are_told_how_to_ask(
    settings: KeySettings, authorization: str, known_first: bool
) -> None:
    token = new_key(settings, "admin")
    headers = {"Authorization": authorization.format(token)}
    answer = ask(make_app(settings, known_first), "/score", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert token not in answer.text


def test_without_a_header_a_key_is_asked_for(settings: KeySettings) -> None:
    answer = ask(make_app(settings), "/score")
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


def test_a_revoked_key_is_refused_by_the_service_that_runs(settings: KeySettings) -> None:
    app = make_app(settings)
    token = new_key(settings, "score")
    assert ask(app, "/score", token).status_code == 200
    assert settings.path is not None
    revoke_key(Path(settings.path), token)
    assert ask(app, "/score", token).status_code == 401


async def unread(app: FastAPI, key: str) -> list[int]:
    """The status that a request gets whose body nobody may read."""
    statuses = []

    async def body() -> dict[str, object]:
        raise AssertionError("the body was read")

    async def send(message: Mapping[str, object]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(int(str(message["status"])))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/score",
        "raw_path": b"/score",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer " + key.encode())],
        "client": ("127.0.0.1", 4711),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, body, send)
    return statuses


def test_strangers_are_refused_before_their_body_is_read(settings: KeySettings) -> None:
    """A body that is no JSON would otherwise be answered with 422, after it was parsed."""
    token = new_key(settings, "score")
    app = make_app(settings)
    assert asyncio.run(unread(app, "rw_unknown")) == [401]
    # Whoever is known is read.
    assert asyncio.run(unread(app, token)) == [400]
    assert ask(app, "/score", content=b"{").status_code == 401
    assert ask(app, "/score", token, content=b"{").status_code == 422


def test_who_asks_too_often_is_refused_before_the_body_is_read(settings: KeySettings) -> None:
    """Else a key beyond its rate could still have megabytes parsed, and take others' room."""
    app = make_app(settings)
    token = new_key(settings, "score", rate=2)
    # What is refused later counts, too: for its body, or its scope.
    assert ask(app, "/score", token, content=b"{").status_code == 422
    assert ask(app, "/admin", token).status_code == 403
    assert asyncio.run(unread(app, token)) == [429]


def test_lists_that_need_no_scope_count_for_the_rate(settings: KeySettings) -> None:
    app = make_app(settings)
    document = {"jobs": {}, "keys": {"path": settings.path}}
    app.include_router(models_routes(Backends(parse_serving(document), {}, None, None)))
    token = new_key(settings, "score", rate=1)

    async def listed() -> int:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 4711))
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/v1/models", headers=headers)).status_code

    assert [asyncio.run(listed()) for _ in range(2)] == [200, 429]


def test_health_needs_no_key(settings: KeySettings) -> None:
    async def one() -> int:
        transport = httpx.ASGITransport(make_app(settings), client=("203.0.113.7", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/health")).status_code

    assert asyncio.run(one()) == 200


class Clock:
    """Stands where it is set, in the place of the rate limiter's."""

    now = 1_800_000_010.0  # ten seconds into a minute

    def time(self) -> float:
        return self.now


def test_a_key_that_asks_too_fast_waits(
    settings: KeySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("limits.aio.storage.memory.time", clock)
    monkeypatch.setattr("limits.aio.strategies.time", clock)
    monkeypatch.setattr("rayward.services.http.access.time", clock)
    app = make_app(settings)
    slow = new_key(settings, "score", rate=3)
    other = new_key(settings, "score", rate=3)
    assert [ask(app, "/score", slow).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = ask(app, "/score", slow)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    # Until the minute is over; the second key has a count of its own.
    assert refused.headers["Retry-After"] == "50"
    assert ask(app, "/score", other).status_code == 200
    # 20 s into the next minute two thirds of the last one still count: 3 * 40/60 = 2.
    clock.now += 70
    assert [ask(app, "/score", slow).status_code for _ in range(2)] == [200, 429]


def test_a_key_without_a_rate_has_the_settings(settings: KeySettings) -> None:
    app = make_app(settings.model_copy(update={"requests_per_minute": 2}))
    token = new_key(settings, "score")
    assert sorted(ask(app, "/score", token).status_code for _ in range(6))[-1] == 429


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_without_keys_this_machine_may_ask(peer: str) -> None:
    assert ask(make_app(KeySettings()), "/score", peer=peer).status_code == 200


@pytest.mark.parametrize("known_first", [True, False])
@pytest.mark.parametrize(
    "peer", ["192.0.2.1", "10.0.0.1", "::", "2001:db8::1", "::ffff:192.0.2.1", "", "127.0.0.1.evil"]
)
def test_without_keys_other_machines_may_not(peer: str, known_first: bool) -> None:
    answer = ask(make_app(KeySettings(), known_first), "/score", peer=peer)
    assert answer.status_code == 403
    assert "only this machine" in answer.json()["error"]["message"]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_without_keys_a_proxy_may_not_ask_for_others(header: str) -> None:
    """It comes from this machine, but not in its own name."""
    answer = ask(make_app(KeySettings()), "/score", headers={header: "for=127.0.0.1"})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"Host": "rebound.example:8000"}, {"Origin": "https://rebound.example"}, {"Origin": "null"}],
)
def test_without_keys_a_page_of_somebody_else_may_not_ask(headers: dict[str, str]) -> None:
    """A browser on this machine asks for whatever page it shows."""
    answer = ask(make_app(KeySettings()), "/score", headers=headers)
    assert answer.status_code == 403
    assert "localhost" in answer.json()["error"]["message"]


def test_without_keys_a_page_of_this_machine_may_ask() -> None:
    headers = {"Host": "localhost:8000", "Origin": "http://127.0.0.1:3000"}
    assert ask(make_app(KeySettings()), "/score", headers=headers).status_code == 200


def test_keys_are_required_where_others_can_come_in(settings: KeySettings) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        assert is_loopback(host)
        require_keys(KeySettings(), host)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        require_keys(settings, host)
        with pytest.raises(InputError) as caught:
            require_keys(KeySettings(), host)
        assert (caught.value.field, caught.value.value) == ("http.host", host)


def test_a_key_file_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Access(KeySettings(path=str(tmp_path / "none.json")))
    assert caught.value.field == "keys.path"


def test_the_openapi_document_says_that_a_key_is_needed(settings: KeySettings) -> None:
    document = make_app(settings).openapi()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/score"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health"]["get"]
    assert {"401", "403", "429"} <= document["paths"]["/score"]["post"]["responses"].keys()


def test_no_key_and_no_text_is_in_any_log(
    settings: KeySettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything at debug level, the web server's access log too."""
    caplog.set_level(logging.DEBUG)
    app = make_app(settings)
    token = new_key(settings, "score", rate=3)
    with listening(app) as url, httpx.Client(base_url=url) as client:
        # The server's loggers do not pass on what they log.
        for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
            logging.getLogger(name).addHandler(caplog.handler)
        statuses = set()
        for path in ("/score", "/admin"):
            for key in (token, token + "x", f"{token[:-1]}é"):
                raw = f"Bearer {key}".encode()
                answer = client.post(
                    path, json={"text": "hush-hush"}, headers={b"Authorization": raw}
                )
                statuses.add(answer.status_code)
        for _ in range(4):
            headers = {"Authorization": f"Bearer {token}"}
            statuses.add(
                client.post("/score", json={"text": "hush-hush"}, headers=headers).status_code
            )
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).removeHandler(caplog.handler)
    assert statuses == {200, 401, 403, 429}
    assert "POST /score" in caplog.text
    assert token[16:-1] not in caplog.text
    assert "hush-hush" not in caplog.text
