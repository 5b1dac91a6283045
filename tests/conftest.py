"""What several test files share."""

import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pytest
import ray
from ray._private.parameter import RayParams

from tests import preloaded

# DeepSpeed's op, which `make setup` has compiled; without this each test run compiles it anew.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[str]:
    """A small Ray of this test run's own; its address, for programs that join it.

    Its workers are forks, and so are the commands that `preloaded.command` starts.
    """
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="rw") as folder, preloaded.preloading(Path(folder)):
        with pytest.MonkeyPatch.context() as patch:
            # `ray.init` has no argument for it.
            init = partialmethod(RayParams.__init__, worker_path=preloaded.__file__)
            patch.setattr(RayParams, "__init__", init)
            # Never a cluster that somebody else runs on this machine.
            ray.init(address="local", num_cpus=32, include_dashboard=False, log_to_driver=False)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
