"""A run's numbers as Ray metrics, which Prometheus reads from each node of the cluster.

Ray's agent on a node answers HTTP at the node's metrics port, on an embedded Ray too. There

    actor/ppo_kl of stage ppo    is    ray_rayward_actor_ppo_kl{run="demo",stage="ppo",...}

A gauge is the last number only; Prometheus adds the time. A process that joins through Ray Client
(ray://) is outside the cluster, where nobody reads its gauges.
"""

import re
import threading
from collections.abc import Mapping

import ray
from ray.util.metrics import Gauge

from rayward.cluster.trackers.interface import EndState, MetricRow

_TAGS = ("run", "stage")
_NOT_LEGAL = re.compile(r"[^a-zA-Z0-9_]")
# Ray passes a gauge on once, within ten seconds, and drops it twenty seconds later, while a step
# can take minutes.
_AGAIN_AFTER_S = 5.0


class RayGauges:
    """Sets a gauge for every number while Ray is up, and keeps it there until the run ends."""

    name = "Ray's metrics"

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}
        self._last: dict[tuple[str, str], float] = {}  # by metric and stage
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._keeper: threading.Thread | None = None

    def log(self, row: MetricRow) -> None:
        """Set the gauges of one step.

        Raises:
            ValueError: two metrics would have one name.
        """
        if not ray.is_initialized():
            return
        with self._lock:
            for name, value in row.values.items():
                self._gauges[name] = self._gauge(name)
                self._last[name, row.stage] = value
        self._set()
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="ray-gauges", daemon=True)
            self._keeper.start()

    def finish(self, state: EndState, headline: Mapping[str, float]) -> None:
        """Let go of the gauges, which Ray then drops."""
        self._ended.set()
        if self._keeper is not None:
            self._keeper.join()

    def _keep(self) -> None:
        while not self._ended.wait(_AGAIN_AFTER_S):
            if ray.is_initialized():
                self._set()

    def _set(self) -> None:
        with self._lock:
            for (name, stage), value in self._last.items():
                self._gauges[name].set(value, tags={"run": self._run, "stage": stage})

    def _gauge(self, name: str) -> Gauge:
        if name in self._gauges:
            return self._gauges[name]
        legal = "rayward_" + _NOT_LEGAL.sub("_", name)
        for other, gauge in self._gauges.items():
            if gauge.info["name"] == legal:
                raise ValueError(f"metrics {other!r} and {name!r} would both be {legal}")
        return Gauge(legal, description=name, tag_keys=_TAGS)


def metrics_address() -> str | None:
    """Where Prometheus can read this process's gauges, or None where it cannot."""
    if ray.util.client.ray.is_connected():
        return None
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    port: int = node["MetricsExportPort"]
    return f"http://{node['NodeManagerAddress']}:{port}/metrics" if port > 0 else None
