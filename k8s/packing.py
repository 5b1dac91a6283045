"""How many nodes each worker group needs, found by placing everything as Ray will place it.

A gang is a placement group of strategy PACK. Ray's scheduler (bundle_scheduling_policy.cc) sorts
its bundles (GPUs, then custom resources, then CPUs, the largest first), gives the first to the
node with the largest share of its room left, puts on that node whatever else fits there, and goes
on with the next node. A bundle is never split. Groups grow until every moment of a recipe can be
placed so.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil

from rayward.cluster.errors import InputError
from rayward.cluster.ray_runtime.placement import Bundle, make_bundles
from rayward.k8s.machines import Machine
from rayward.pipelines.run.capacity import Gang, Moment

# Ray counts in ten-thousandths.
_GRAIN = 1e-4


@dataclass
class _Node:
    machine: Machine
    free: dict[str, float] = field(init=False)
    gpus: list[float] = field(init=False)
    holds: list[Bundle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = dict(self.machine.offers)
        self.gpus = [1.0] * self.machine.gpus

    def fits(self, bundle: Bundle) -> bool:
        if not self.machine.carries(bundle.labels):
            return False
        if any(self.free.get(name, 0) < want - _GRAIN for name, want in bundle.resources.items()):
            return False
        return self._gpus_for(bundle.resources.get("GPU", 0)) is not None

    def _gpus_for(self, want: float) -> list[int] | None:
        """GPUs that can be had: whole ones that nobody shares, or a part of one."""
        if not want:
            return []
        if want < 1 - _GRAIN:
            shared = [i for i, left in enumerate(self.gpus) if left >= want - _GRAIN]
            return [min(shared, key=self.gpus.__getitem__)] if shared else None
        whole = [i for i, left in enumerate(self.gpus) if left >= 1 - _GRAIN]
        return whole[: round(want)] if len(whole) >= round(want) else None

    def takes(self, bundle: Bundle) -> bool:
        """Hold a bundle, if it fits."""
        if not self.fits(bundle):
            return False
        want = bundle.resources.get("GPU", 0)
        for index in self._gpus_for(want) or []:
            self.gpus[index] -= min(want, 1.0)
        for name, amount in bundle.resources.items():
            self.free[name] -= amount
        self.holds.append(bundle)
        return True

    def room_left(self, bundle: Bundle) -> float:
        """Ray's score: of each resource that is asked for, the share that would be left."""
        return sum(
            (self.free[name] - want) / self.free[name] for name, want in bundle.resources.items()
        )


def plan_nodes(moments: Sequence[Moment], machines: Sequence[Machine]) -> dict[str, int]:
    """The nodes that each group needs, so that every moment can be placed.

    Args:
        moments: what is there at the same time, one after another.
        machines: the groups, in the order in which they are tried.

    Returns:
        Nodes by group; groups that nothing needs are left out.

    Raises:
        InputError: names the role, what it asks for, and what a node offers: a bundle fits no
            node, no group has its labels, or a group would need more nodes than it may have.
    """
    bundles = [(moment, bundle) for moment in moments for bundle in _bundles(moment)]
    machines = _homes(bundles, machines)
    for moment, bundle in bundles:
        _require_home(moment, bundle, machines)
    counts = {
        machine.role: max((_at_least(moment, machine, machines) for moment in moments), default=0)
        for machine in machines
    }
    grown = True
    while grown:
        grown = False
        for moment in moments:
            while (left := place(moment.gangs, machines, counts).left) is not None:
                counts[_grows(moment, left, machines, counts)] += 1
                grown = True
    return {role: count for role, count in counts.items() if count}


@dataclass(frozen=True)
class Placed:
    """Where bundles went."""

    nodes: Sequence[tuple[Machine, Sequence[Bundle]]]
    """Every node, with what it holds."""
    left: Bundle | None
    """The first bundle that found no room; None if all did."""


def place(gangs: Sequence[Gang], machines: Sequence[Machine], counts: Mapping[str, int]) -> Placed:
    """Place gangs, one after another, on so many nodes of each group."""
    nodes = [_Node(one) for one in machines for _ in range(counts.get(one.role, 0))]
    for gang in gangs:
        left = sorted(make_bundles(gang.requests, gang.colocate), key=_size, reverse=True)
        candidates = list(nodes)
        while left:
            first = left[0]
            fitting = [node for node in candidates if node.fits(first)]
            if not fitting:
                return Placed([(node.machine, node.holds) for node in nodes], first)
            best = max(fitting, key=partial(_Node.room_left, bundle=first))
            left = [bundle for bundle in left if not best.takes(bundle)]
            candidates = [node for node in candidates if node is not best]
    return Placed([(node.machine, node.holds) for node in nodes], None)


def _bundles(moment: Moment) -> list[Bundle]:
    return [
        bundle for gang in moment.gangs for bundle in make_bundles(gang.requests, gang.colocate)
    ]


def _size(bundle: Bundle) -> tuple[float, list[tuple[str, float]], float]:
    custom = sorted((n, v) for n, v in bundle.resources.items() if n not in ("CPU", "GPU"))
    return bundle.resources.get("GPU", 0), custom, bundle.resources.get("CPU", 0)


def _homes(
    bundles: Sequence[tuple[Moment, Bundle]], machines: Sequence[Machine]
) -> Sequence[Machine]:
    """The groups that are used. Without labels it is one, or Ray would mix up what is planned."""
    unlabelled = [(moment, bundle) for moment, bundle in bundles if not bundle.labels]
    if not unlabelled:
        return machines
    if len(unlabelled) < len(bundles):
        moment, bundle = unlabelled[0]
        expected = "labels, as other roles have them: without, Ray may give it their room"
        raise InputError(f"{_name(moment, bundle)}: resources.labels", {}, expected)
    for machine in machines:
        if all(_Node(machine).fits(bundle) for _, bundle in unlabelled):
            return [machine]
    # No group holds all; the refusal is about what no group holds, or the last one does not.
    none = [one for one in unlabelled if not any(_Node(m).fits(one[1]) for m in machines)]
    for moment, bundle in none or unlabelled:
        _require_home(moment, bundle, machines if none else machines[-1:])
    return machines


def _require_home(moment: Moment, bundle: Bundle, machines: Sequence[Machine]) -> None:
    gpus = bundle.resources.get("GPU", 0)
    where = f"{_name(moment, bundle)}: resources"
    if gpus > 1 and abs(gpus - round(gpus)) > _GRAIN:
        raise InputError(f"{where}.gpus", gpus, "whole GPUs, or a share of one")
    labelled = [machine for machine in machines if machine.carries(bundle.labels)]
    if not labelled:
        there = "; ".join(f"{machine.role}: {machine.all_labels}" for machine in machines)
        expected = f"labels that a worker group has ({there})"
        raise InputError(f"{where}.labels", dict(bundle.labels), expected)
    if not any(_Node(machine).fits(bundle) for machine in labelled):
        largest = max(labelled, key=lambda one: (one.gpus, one.cpus))
        expected = f"no more than one node offers: {largest.role} has {largest.offers}"
        raise InputError(where, dict(bundle.resources), expected)


def _at_least(moment: Moment, machine: Machine, machines: Sequence[Machine]) -> int:
    """Nodes that are needed however cleverly bundles that can go nowhere else are placed."""
    asked: defaultdict[str, float] = defaultdict(float)
    for bundle in _bundles(moment):
        if [one for one in machines if _Node(one).fits(bundle)] == [machine]:
            for name, amount in bundle.resources.items():
                asked[name] += amount
    needed = (amount / machine.offers[name] - _GRAIN for name, amount in asked.items())
    least = max((ceil(one) for one in needed), default=0)
    return least if machine.max_nodes is None else min(least, machine.max_nodes)


def _grows(
    moment: Moment, bundle: Bundle, machines: Sequence[Machine], counts: Mapping[str, int]
) -> str:
    """The group that gets one more node for a bundle."""
    able = [machine for machine in machines if _Node(machine).fits(bundle)]
    for machine in able:
        if machine.max_nodes is None or counts[machine.role] < machine.max_nodes:
            return machine.role
    limits = ", ".join(f"{counts[machine.role]} of {machine.role}" for machine in able)
    expected = f"all of {moment.name} to fit on the nodes that there may be: {limits}"
    where = f"{_name(moment, bundle)}: resources"
    raise InputError(where, dict(bundle.resources), expected)


def _name(moment: Moment, bundle: Bundle) -> str:
    roles = " + ".join(dict.fromkeys(role for role, _ in bundle.slots))
    return roles if moment.name == roles else f"{moment.name}: {roles}"
