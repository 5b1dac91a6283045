"""One service for all tests of this folder: reward models, a policy, jobs, and keys."""

from collections.abc import Iterator

import pytest

from tests.serving import Served, rayward, serving, write_models


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, preloading: None) -> Iterator[Served]:
    """Everything behind one port, in processes of its own."""
    folder = tmp_path_factory.mktemp("served")
    models = write_models(folder / "models")
    # A service that asks for keys starts with the file that holds them.
    rayward("keys", "create", "--scope", "admin", "--file", str(folder / "keys.json"))
    document = {
        "keys": {"path": str(folder / "keys.json"), "requests_per_minute": 100_000},
        "reward": {
            "safety": {"path": str(models / "safety")},
            "helpfulness": {"path": str(models / "helpfulness")},
            "policy": str(models / "policy"),
            "max_items": 64,
        },
        "policy": {"path": str(models / "policy")},
        "jobs": {"runs_root": str(folder / "runs")},
    }
    with serving(folder, document, forked=True) as service:
        yield service
