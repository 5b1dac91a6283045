"""Which role runs where: one placement group for a stage, one bundle per group of roles."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayward.cluster.config.roles import Resources
from rayward.cluster.errors import InputError

_PLACEMENT_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class RoleRequest:
    """What a role asks for: how many processes, and what each needs."""

    name: str
    processes: int
    resources: Resources


def _wanted(resources: Resources) -> dict[str, float]:
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}
    return {name: amount for name, amount in wanted.items() if amount > 0}


def total_cpus(requests: Sequence[RoleRequest]) -> float:
    """CPUs that all processes of all roles ask for together."""
    return sum(request.processes * request.resources.cpus for request in requests)


def missing_resources(
    requests: Sequence[RoleRequest], available: Mapping[str, float]
) -> dict[str, float]:
    """What the roles ask for together, of resources of which there are fewer."""
    wanted: defaultdict[str, float] = defaultdict(float)
    for request in requests:
        for name, amount in _wanted(request.resources).items():
            wanted[name] += amount * request.processes
    return {name: amount for name, amount in wanted.items() if amount > available.get(name, 0)}


@dataclass(frozen=True)
class Bundle:
    """What stays together: Ray never splits it over nodes."""

    slots: Sequence[tuple[str, int]]
    """Role, and number of its process."""
    resources: Mapping[str, float]
    """By Ray's names: CPU, GPU, and custom ones."""
    labels: Mapping[str, str]
    """Label selector of the node."""


def make_bundles(
    requests: Sequence[RoleRequest], colocate: Sequence[Sequence[str]]
) -> list[Bundle]:
    """One bundle for each group of roles, and one for each process of the others.

    Raises:
        InputError: roles of a group ask for different labels.
    """
    asked = {request.name: request for request in requests}

    def slots(role: str) -> list[tuple[str, int]]:
        return [(role, process) for process in range(asked[role].processes)]

    together = {role for group in colocate for role in group}
    # A recipe may name a role that it has no use for, such as GRPO a critic.
    held = [[slot for role in group if role in asked for slot in slots(role)] for group in colocate]
    held += [[slot] for role in asked if role not in together for slot in slots(role)]
    bundles = []
    for own in filter(None, held):
        resources = [asked[role].resources for role, _ in own]
        if any(one.labels != resources[0].labels for one in resources):
            raise InputError(
                "ppo.colocate",
                sorted({role for role, _ in own}),
                "roles with the same resources.labels",
            )
        summed = dict(sum((Counter(_wanted(one)) for one in resources), Counter()))
        bundles.append(Bundle(own, summed, resources[0].labels))
    return bundles


class Placement:
    """Reserves room for all roles at once, so that none waits for another for ever.

    Args:
        requests: every role of the stage.
        colocate: groups of role names that share one bundle, and so one node and its GPUs.

    Raises:
        InputError: roles of a group ask for different labels, or the cluster has no room.
    """

    def __init__(self, requests: Sequence[RoleRequest], colocate: Sequence[Sequence[str]]) -> None:
        self._requests = {request.name: request for request in requests}
        bundles = make_bundles(requests, colocate)
        self._bundle_of = {
            slot: index for index, bundle in enumerate(bundles) for slot in bundle.slots
        }
        resources = [dict(bundle.resources) for bundle in bundles]
        self._group: PlacementGroup = placement_group(
            resources,
            strategy="PACK",
            bundle_label_selector=[dict(bundle.labels) for bundle in bundles],
        )
        if not self._group.wait(_PLACEMENT_TIMEOUT_S):
            remove_placement_group(self._group)
            raise InputError(
                "ppo resources",
                resources,
                f"no more than the cluster has: {ray.cluster_resources()}",
            )

    def start(
        self,
        role: str,
        actor: type,
        arguments: Sequence[Mapping[str, Any]],
        environment: Mapping[str, str],
    ) -> list[ActorHandle]:
        """Start a role's processes: one actor of the plain class per set of arguments."""
        resources = self._requests[role].resources
        threads = str(resources.threads)
        remote: Any = ray.remote(actor)
        return [
            remote.options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                resources=resources.custom,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, **environment}},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=self._bundle_of[role, process]
                ),
            ).remote(**own)
            for process, own in enumerate(arguments)
        ]

    def release(self) -> None:
        """Give the room back; the actors in it end."""
        remove_placement_group(self._group)


@contextmanager
def one_actor(
    name: str, actor: type, resources: Resources, arguments: Mapping[str, Any]
) -> Iterator[ActorHandle]:
    """A role of one process for the time of the block."""
    placement = Placement([RoleRequest(name, 1, resources)], [])
    try:
        (handle,) = placement.start(name, actor, [arguments], {})
        yield handle
    finally:
        placement.release()
