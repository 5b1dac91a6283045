"""Every port that Ray can be told of is in the table of the network policies.

A new version of Ray may bring one: an option of `ray start`, or a constant. Each is in the table of
`test_network_policies.py`, or here with the reason why not.
"""

from collections.abc import Iterator
from types import ModuleType

import pytest
from ray._private import ray_constants
from ray.autoscaler._private import constants as autoscaler_constants
from ray.dashboard import consts as dashboard_constants
from ray.scripts.scripts import start
from ray.serve._private import constants as serve_constants

from tests.k8s.test_network_policies import PORTS, RAY_PORTS, SAME

OPTIONS_WITHOUT = {
    "redis-shard-ports": "Ray starts no Redis of its own",
    "worker-port-list": "in place of min- and max-worker-port, which are set",
}
CONSTANTS_WITHOUT = {
    "GCS_PORT_ENVIRONMENT_VARIABLE": "a variable's name; it says the same as --port",
    "NUM_PORT_RETRIES": "a count",
    "RAY_SERVE_DIRECT_INGRESS_PORT_RETRY_COUNT": "a count",
    "RAY_SERVE_PORT_QUARANTINE_S": "seconds",
    "RAY_SERVE_WORKER_PROXY_GRPC_PORT": "unset: workers listen where the head does",
    "RAY_SERVE_WORKER_PROXY_HTTP_PORT": "unset: workers listen where the head does",
}
MODULES = (ray_constants, serve_constants, dashboard_constants, autoscaler_constants)


def options(command: object) -> set[str]:
    """The options of a click command that are about ports."""
    names = {parameter.opts[0].removeprefix("--") for parameter in command.params}  # type: ignore[attr-defined]
    return {name for name in names if "port" in name}


def constants(module: ModuleType) -> Iterator[tuple[str, object]]:
    """A module's constants that are about ports."""
    for name, value in vars(module).items():
        if name.isupper() and {"PORT", "PORTS"} & set(name.split("_")):
            yield name, value


def test_every_option_of_ray_start_is_in_the_table() -> None:
    known = {*RAY_PORTS, *SAME} & options(start)
    assert options(start) == known | set(OPTIONS_WITHOUT)
    assert known >= set(RAY_PORTS)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.__name__))
def test_every_port_among_rays_constants_is_in_the_table(module: ModuleType) -> None:
    known = {end for port in PORTS.values() for end in (port.first, port.last)}
    found = dict(constants(module))
    assert found
    for name, value in found.items():
        assert name in CONSTANTS_WITHOUT or value in known, (name, value)


def test_no_reason_outlives_its_port() -> None:
    there = {name for module in MODULES for name, _ in constants(module)}
    assert set(CONSTANTS_WITHOUT) <= there
    assert not any(
        value is not None
        for name, value in constants(serve_constants)
        if CONSTANTS_WITHOUT.get(name, "").startswith("unset")
    )


def test_a_new_port_would_be_found() -> None:
    module = ModuleType("new")
    vars(module).update(RAY_SERVE_TURBO_PORT=7777, IMPORT_PATH="a:b", port=1)
    assert dict(constants(module)) == {"RAY_SERVE_TURBO_PORT": 7777}
