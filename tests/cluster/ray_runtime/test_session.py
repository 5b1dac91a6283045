"""Joining a cluster: what is no address, and where nobody answers. No Ray is started here."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray
from ray._private import ray_constants
from ray._private.parameter import RayParams

from rayward.cluster.errors import InputError
from rayward.cluster.ray_runtime.session import check_address, ray_session


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: object) -> None:
        pytest.fail(f"Ray was started: {settings}")

    monkeypatch.setattr(ray, "init", refuse)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nobody_listens_is_said_at_once(scheme: str) -> None:
    """And the process is left where it was, with its environment as it was."""
    address = f"{scheme}127.0.0.1:{free_port()}"
    here, environment = Path.cwd(), dict(os.environ)
    began = time.monotonic()
    with pytest.raises(InputError) as caught, ray_session(address, 1):
        pytest.fail("the session began")
    assert time.monotonic() - began < 25
    assert (caught.value.field, caught.value.value) == ("--address", address)
    assert caught.value.expected.startswith("host:port or ray://host:port of a running Ray cluster")
    assert "nothing answers" in caught.value.expected
    assert Path.cwd() == here
    assert dict(os.environ) == environment


def test_a_host_that_does_not_exist_is_said() -> None:
    with pytest.raises(InputError, match="nothing answers"):
        check_address("no-such-host.invalid:6379")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "local",
        "head",
        "head:",
        ":6379",
        "head:ray",
        "head:99999",
        "http://",
        "[::1",
        "ray://head",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError) as caught:
        check_address(address)
    assert caught.value.value == address
    assert caught.value.expected == "host:port or ray://host:port of a running Ray cluster"


def test_an_address_where_a_grpc_server_answers_passes() -> None:
    """As Ray's head and its client server are; test_join.py asks a real head."""
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    check_address(f"127.0.0.1:{port}")
    check_address(f"ray://127.0.0.1:{port}")
    check_address(f"localhost:{port}")
    server.stop(None)


def test_what_listens_and_says_nothing_is_refused_within_5_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        with pytest.raises(InputError, match="what answers there is no Ray"):
            check_address(f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - began < 25


def test_an_embedded_ray_and_ray_on_this_machine_have_no_address_to_ask() -> None:
    check_address(None)
    check_address("auto")


def test_what_answers_but_is_no_cluster_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also `auto` where no Ray runs."""

    def init(**settings: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(InputError, match=r"--address: got 'auto', .* any running Ray instance"),
        ray_session("auto", 1),
    ):
        pytest.fail("the session began")


def test_an_embedded_ray_has_room_for_roles_that_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More CPUs than the machine has, in whole numbers; and it ends with the block."""
    asked: list[dict[str, object]] = []
    ended: list[bool] = []
    monkeypatch.setattr(ray, "init", lambda **settings: asked.append(settings))
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    monkeypatch.chdir(tmp_path)
    many = (os.cpu_count() or 1) + 40
    with ray_session(None, many + 0.25):
        assert not ended
    with ray_session(None, 0.5):
        pass
    assert [one["num_cpus"] for one in asked] == [many + 1, os.cpu_count()]
    assert asked[0]["address"] == "local"  # never another run's Ray
    assert ended == [True, True]


@pytest.mark.parametrize("dashboard", [False, True])
def test_the_caller_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dashboard: bool
) -> None:
    """Its working directory and Ray's classes; only for the start are job agents' ports free."""
    before, during = RayParams.__init__, []

    def init(**settings: object) -> None:
        during.append((Path.cwd(), RayParams().dashboard_agent_listen_port))
        # Ray puts the working directory on the workers' path unless this says not to.
        assert settings["job_config"]._client_job is True  # type: ignore[attr-defined]

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.chdir(tmp_path)
    with ray_session(None, 1, dashboard=dashboard):
        assert Path.cwd() == tmp_path
        assert RayParams.__init__ is before
    fixed = ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    assert during == [(tmp_path, 0 if dashboard else fixed)]
    assert Path.cwd() == tmp_path
