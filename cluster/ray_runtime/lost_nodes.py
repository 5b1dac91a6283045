"""A lost node is named: Ray tells at once that an actor is gone, and only later why."""

import time
from types import TracebackType
from typing import Any, Self

import ray

from rayward.cluster.errors import GateFailed, InputError, NodeLost, RunStopped

# Ray holds a node for lost after five unanswered questions, three seconds apart.
_PATIENCE_S = 30.0
_LOOK_EVERY_S = 0.5
# What has a cause of its own.
_EXPLAINED = (InputError, GateFailed, RunStopped)


class NamingLostNodes:
    """A context manager, within a Ray session, that names the nodes that were lost.

    Raises:
        NodeLost: the block failed, and a node has left the cluster since it began, or does within
            half a minute. It stands for the block's own error, which is its cause.
    """

    def __enter__(self) -> Self:
        self._before = _nodes(alive=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # On one node there is nobody to be lost but all.
        if len(self._before) < 2 or not isinstance(error, Exception):
            return
        if isinstance(error, _EXPLAINED):
            return
        until = time.monotonic() + _PATIENCE_S
        while not (lost := self._before.keys() & _nodes(alive=False).keys()):
            if time.monotonic() > until:
                return
            time.sleep(_LOOK_EVERY_S)
        names = sorted(_name(self._before[node]) for node in lost)
        raise NodeLost(
            f"the cluster lost {', '.join(names)}, and with it what ran there "
            f"({type(error).__name__})"
        ) from error


def _nodes(alive: bool) -> dict[str, dict[str, Any]]:
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"] == alive}


def _name(node: dict[str, Any]) -> str:
    # Ray's own labels are not what somebody chose its place by.
    labels = [
        f"{name}={value}"
        for name, value in sorted(node["Labels"].items())
        if not name.startswith("ray.io/")
    ]
    return f"node {node['NodeManagerAddress']}" + (f" ({', '.join(labels)})" if labels else "")
