"""What several test files share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

# DeepSpeed's op, which `make setup` has compiled; without this each test run compiles it anew.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A small Ray of this test run's own."""
    # Never a cluster that somebody else runs on this machine.
    ray.init(address="local", num_cpus=32, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
