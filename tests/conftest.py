"""What several test files share."""

import gc
import os
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import ray
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.workermanage import WorkerController

from tests import preloaded, tiers

# On a busy machine an example takes as long as it takes, and every run draws the same ones.
settings.register_profile(
    "rayward",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("rayward")

# DeepSpeed's op, which `make setup` has compiled; without this each test run compiles it anew.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
# To load it, the environment's ninja: another one compiles it anew.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_guard = tiers.Guard()


def pytest_configure_node(node: WorkerController) -> None:
    tiers.Scheduling.tell(node, _guard.folder / "groups.json")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> tiers.Scheduling:
    return tiers.Scheduling(config, _guard.folder / "groups.json", log)


# Before pytest reads the marks.
@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    tiers.mark(config, items)
    return (yield)


def pytest_collection_finish() -> None:
    # What is loaded by now stays: nobody needs to look through it for garbage.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    _guard.begin(item)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    try:
        return (yield)
    finally:
        _guard.end()


def pytest_unconfigure() -> None:
    gc.unfreeze()
    _guard.close()


@pytest.fixture(scope="session")
def preloading() -> Iterator[None]:
    """What starts by `preloaded.command` or `preloaded.call` need not import anything."""
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="rw") as folder, preloaded.preloading(Path(folder)):
        yield


@pytest.fixture(scope="session")
def ray_session(preloading: None) -> Iterator[str]:
    """A small Ray of this test run's own, whose workers are forks; its address, for who joins."""
    with pytest.MonkeyPatch.context() as patch:
        preloaded.workers_are_forks(patch.setattr)
        # Never a cluster that somebody else runs on this machine.
        ray.init(address="local", num_cpus=32, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
