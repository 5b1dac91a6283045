"""Room on the machines: what runs at the same time fits, and one loss takes one replica."""

import re
from collections import Counter

import pytest

from rayward.cluster.config.load import load_recipe
from rayward.cluster.config.shipped import shipped_recipes
from rayward.k8s.packing import plan_nodes
from rayward.k8s.render import serving_moment
from rayward.pipelines.run.capacity import Moment, moments
from tests.manifests import (
    K8S,
    OVERLAYS,
    RAY_KINDS,
    Document,
    asked,
    build,
    cluster_of,
    gib,
    groups_by_role,
    kustomize,
    machines_of,
    of_kind,
    one,
    recipe_of_job,
    serving,
)


@pytest.mark.parametrize("other", RAY_KINDS)
def test_the_small_node_holds_the_service_and_what_runs_beside_it(other: str) -> None:
    """A measurement without room waits until its deadline, every night; a second service is an
    upgrade of the first."""
    guide = (K8S / "README.md").read_text()
    (node,) = re.findall(r"`dev-cpu` \| .*one, with (\d+) cores and (\d+) GiB for pods", guide)
    documents = build("dev-cpu")
    (files,) = kustomize(K8S / "components" / "files")
    kinds = ("StatefulSet", "RayService", other)
    together = [files, *(one(documents, kind) for kind in kinds)]
    beside = sum((asked(document) for document in together), Counter())
    assert beside["cpu"] <= int(node[0])
    assert beside["memory"] <= int(node[1])


# The roles of a demo, as they were measured, and Ray's own processes of a pod: GiB.
ENGINE, ROLE, RAY = 1.7, 0.5, 1.0


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_the_small_nodes_pods_hold_what_was_measured(kind: str) -> None:
    """One engine, and a reward model or another role for each process beside it."""
    document = one(build("dev-cpu"), kind)
    run = ENGINE + 5 * ROLE
    served = ENGINE + 2 * ROLE
    needed = {"RayService": served + run}.get(kind, run) + RAY
    (group,) = groups_by_role(document).values()
    memory = gib(group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])
    assert needed <= memory - gib(shm_of(group["template"]["spec"])) / 2


def shm_of(pod: Document) -> str:
    """The size of a pod's shared memory."""
    (size,) = (one["emptyDir"]["sizeLimit"] for one in pod["volumes"] if one["name"] == "shm")
    return str(size)


def runs_of(overlay: str) -> list[tuple[str, list[Moment]]]:
    """What may be submitted to an overlay's service, with its topology where there are groups."""
    if overlay == "dev-cpu":
        return [(name, moments(load_recipe(path))) for name, path in shipped_recipes().items()]
    topology = K8S / "overlays" / overlay / "topology.yaml"
    own = {"its own": recipe_of_job(build(overlay), overlay)}
    shipped = {
        name: load_recipe(path, None, [topology]) for name, path in shipped_recipes().items()
    }
    return [(name, moments(recipe)) for name, recipe in {**own, **shipped}.items()]


def test_a_job_of_the_service_finds_room_beside_the_replicas(overlay: str) -> None:
    """On the groups as large as they may become; none of it is a replica's room."""
    service = one(build(overlay), "RayService")
    served = serving_moment(serving(build(overlay)))
    labels = {gang.requests[0].resources.labels.get("role") for gang in served.gangs}
    for name, asked_ in runs_of(overlay):
        for moment in asked_:
            roles = {request.resources.labels.get("role") for request in moment.requests}
            beside = [*served.gangs, *moment.gangs] if roles == labels else moment.gangs
            assert roles == labels or not roles & labels, name
            plan_nodes([Moment(f"{name}: {moment.name}", beside)], machines_of(service))


def test_groups_for_jobs_cost_nothing_until_one_comes(overlay: str) -> None:
    service = one(build(overlay), "RayService")
    groups = groups_by_role(service)
    used = {
        request.resources.labels.get("role", "cpu")
        for request in serving_moment(serving(build(overlay))).requests
    }
    for role, group in groups.items():
        assert (group["minReplicas"] > 0) == (role in used), role
    assert cluster_of(service)["enableInTreeAutoscaling"] is True


# One loss takes one


GPU_OVERLAYS = [name for name in OVERLAYS if name != "dev-cpu"]


@pytest.mark.parametrize("overlay", GPU_OVERLAYS)
def test_pods_that_serve_the_same_are_on_different_machines(overlay: str) -> None:
    """Serve's max_replicas_per_node counts Ray's nodes, of which a machine may have several."""
    service = one(build(overlay), "RayService")
    own = service["metadata"]["labels"]
    for role, group in groups_by_role(service).items():
        constraints = group["template"]["spec"].get("topologySpreadConstraints", [])
        if not group["minReplicas"]:
            assert constraints == [], role
            continue
        (apart,) = constraints
        assert (apart["maxSkew"], apart["whenUnsatisfiable"]) == (1, "DoNotSchedule")
        assert apart["topologyKey"] == "kubernetes.io/hostname"
        assert apart["labelSelector"] == {"matchLabels": own}
        # A new cluster, which takes over from an old one, is counted by itself.
        assert apart["matchLabelKeys"] == ["ray.io/cluster", "ray.io/group"]


def test_every_group_that_serves_has_a_budget_of_its_own(overlay: str) -> None:
    documents = build(overlay)
    own = one(documents, "RayService")["metadata"]["labels"]
    selected = {
        str(budget["spec"]["selector"]["matchLabels"].get("ray.io/group")): budget["spec"]
        for budget in of_kind(documents, "PodDisruptionBudget")
        if own.items() <= budget["spec"]["selector"]["matchLabels"].items()
    }
    head = selected.pop("None")["selector"]["matchLabels"]
    assert head == {**own, "ray.io/node-type": "head"}
    serves = {
        role
        for role, group in groups_by_role(one(documents, "RayService")).items()
        if group["minReplicas"]
    }
    assert set(selected) == serves
    for role, spec in selected.items():
        assert spec["selector"]["matchLabels"] == {**own, "ray.io/group": role}
        assert spec["minAvailable"] == 1


# Time


def test_a_run_may_take_as_long_as_it_does(overlay: str) -> None:
    """Minutes for the demo; days where PPO alone takes more than one."""
    limit = one(build(overlay), "RayJob")["spec"]["activeDeadlineSeconds"]
    assert limit == (86_400 if overlay == "dev-cpu" else 7 * 86_400)
