"""The network policies, asked as a cluster would ask them: which flow passes, and which does not.

The table knows every port that anything here listens on. A new one, in a container, a service, a
parameter of `ray start` or in Ray's own constants, fails a test until somebody writes down who may
reach it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from ray._private import ray_constants
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.dashboard.consts import DASHBOARD_METRIC_PORT
from ray.serve._private import constants as serve_constants

from tests.manifests import CLUSTERS, OPTIONAL, OVERLAYS, build, cluster_of, of_kind, one
from tests.network import Pod, passes

Peer = tuple[str, ...]
RAY_NODES = ("serve", "train", "nightly", "cluster")


@dataclass(frozen=True)
class Port:
    """Something that listens."""

    first: int
    last: int
    what: str
    reached_by: frozenset[str]
    """Who may reach it, besides processes of its own pod."""

    def probes(self) -> tuple[int, ...]:
        return tuple({self.first, (self.first + self.last) // 2, self.last})


def port(first: int, last: int | None, what: str, *reached_by: str) -> Port:
    return Port(first, last or first, what, frozenset(reached_by))


# Who can reach a port: "node", another Ray node of the same cluster; "operator", "submitter",
# "client", "ingress", "prometheus", "redis client".
RAY_PORTS = {
    "port": port(6379, None, "GCS", "node"),
    "dashboard-port": port(8265, None, "the dashboard and job API", "operator", "submitter"),
    "ray-client-server-port": port(10001, None, "Ray Client, which nobody uses here"),
    "object-manager-port": port(8076, None, "objects between nodes", "node"),
    "node-manager-port": port(8077, None, "the raylet", "node"),
    "runtime-env-agent-port": port(8078, None, "asked by the raylet of its own pod"),
    "dashboard-agent-grpc-port": port(8079, None, "the dashboard's agent", "node"),
    "metrics-export-port": port(8080, None, "metrics", "prometheus"),
    "dashboard-agent-listen-port": port(52365, None, "the agent; the kubelet's probes", "node"),
    "min-worker-port": port(10100, 19999, "actors and drivers", "node"),
}
PORTS = {
    **RAY_PORTS,
    "serve": port(8000, None, "HAProxy", "client", "ingress", "operator"),
    "spare proxy": port(
        8500, None, "the head's, asked by HAProxy where no replica is left", "node"
    ),
    "gRPC": port(9000, None, "Serve's, which is off"),
    "spare gRPC proxy": port(9500, None, "the same"),
    "gateway": port(30000, 31000, "gateway replicas, asked by HAProxy on every node", "node"),
    "gateway gRPC": port(40000, 41000, "the same by gRPC, which is off", "node"),
    "kernel": port(32768, 60999, "NCCL, gloo, torch's rendezvous, Serve's own gRPC", "node"),
    "as-metrics": port(44217, None, "the autoscaler's metrics", "node", "prometheus"),
    "dash-metrics": port(44227, None, "the dashboard's metrics", "node", "prometheus"),
    "HAProxy's metrics": port(9101, None, "open to whoever gets there, so nobody may"),
    "HAProxy's statistics": port(8404, None, "the same"),
    "redis": port(6379, None, "Redis", "redis client"),
}
# Not a port of their own: the end of a range, and containers' names for Ray's.
SAME = {
    "max-worker-port": "min-worker-port",
    "gcs-server": "port",
    "dashboard": "dashboard-port",
    "metrics": "metrics-export-port",
}


# Who there is


def ray_pod(part: str, node_type: str) -> Pod:
    """A pod with the labels of its template and those that KubeRay puts on it."""
    document = next(
        document
        for document in build("gpu")
        if document["kind"] in CLUSTERS
        and document["metadata"]["labels"]["app.kubernetes.io/component"] == part
    )
    cluster = cluster_of(document)
    group = cluster["headGroupSpec"] if node_type == "head" else cluster["workerGroupSpecs"][0]
    own = group["template"]["metadata"]["labels"]
    return Pod(labels={**own, "ray.io/node-type": node_type, "ray.io/is-ray-node": "yes"})


def submitter(kind: str) -> Pod:
    spec = one(build("gpu"), kind)["spec"]
    job = spec if kind == "RayJob" else spec["jobTemplate"]
    return Pod(labels=job["submitterPodTemplate"]["metadata"]["labels"])


def redis() -> Pod:
    template = one(build("gpu"), "StatefulSet")["spec"]["template"]
    return Pod(labels=template["metadata"]["labels"])


def redis_cleanup(part: str) -> Pod:
    """The operator's job after a cluster was deleted: the head's pod with another node type."""
    labels = {**ray_pod(part, "head").labels, "ray.io/node-type": "redis-cleanup"}
    return Pod(labels=labels)


OPERATOR = Pod("ray-system", {"app.kubernetes.io/name": "kuberay-operator"})
PROMETHEUS = Pod("monitoring", {"app.kubernetes.io/name": "prometheus"})
INGRESS = Pod("traefik", {"app.kubernetes.io/name": "traefik"})
INGRESS_OF_K3S = Pod("kube-system", INGRESS.labels)
CLIENT = Pod("team-a", {}, {"rayward-clients": "true"})
STRANGER = Pod("team-b")
NEIGHBOUR = Pod("rayward", {"app": "somebody"})
DNS = Pod("kube-system", {"k8s-app": "kube-dns"})
API_SERVER = Pod("", address="10.96.0.1")
INTERNET = Pod("", address="192.0.2.7")
CLOUD_METADATA = Pod("", address="169.254.169.254")


def everybody() -> dict[str, Pod]:
    """Every end that there is, by name."""
    found = {
        "operator": OPERATOR,
        "prometheus": PROMETHEUS,
        "ingress": INGRESS,
        "ingress of k3s": INGRESS_OF_K3S,
        "client": CLIENT,
        "stranger": STRANGER,
        "neighbour": NEIGHBOUR,
        "redis": redis(),
        "train submitter": submitter("RayJob"),
        "nightly submitter": submitter("RayCronJob"),
    }
    for part in RAY_NODES:
        for node_type in ("head", "worker"):
            found[f"{part} {node_type}"] = ray_pod(part, node_type)
    for part in ("serve", "cluster"):
        found[f"{part} redis-cleanup"] = redis_cleanup(part)
    return found


def policies(components: tuple[str, ...]) -> list[dict[str, Any]]:
    return of_kind(build("gpu", components), "NetworkPolicy")


def connects(
    source: Pod, to: Pod, number: int, protocol: str = "TCP", components: Peer = OPTIONAL
) -> bool:
    there = policies(components)
    return passes(there, "Egress", source, to, number, protocol) and passes(
        there, "Ingress", to, source, number, protocol
    )


# The table is whole


def listed(overlay: str, components: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Every port that the manifests name: what it is called, and its number."""
    for document in build(overlay, components):
        if document["kind"] in CLUSTERS:
            cluster = cluster_of(document)
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                for name, value in group["rayStartParams"].items():
                    if "port" in name:
                        yield name, int(value)
                for container in group["template"]["spec"]["containers"]:
                    for one_port in container["ports"]:
                        yield one_port["name"], one_port["containerPort"]
                    for variable in container["env"]:
                        assert "PORT" not in variable["name"], variable
        elif document["kind"] == "StatefulSet":
            for container in document["spec"]["template"]["spec"]["containers"]:
                for one_port in container["ports"]:
                    yield one_port["name"], one_port["containerPort"]
        elif document["kind"] == "Service":
            for one_port in document["spec"]["ports"]:
                yield one_port["name"], one_port["port"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_table_knows_every_port(overlay: str) -> None:
    seen = set()
    for name, number in listed(overlay, ()):
        known = PORTS[SAME.get(name, name)]
        assert number in (known.first, known.last), name
        seen.add(SAME.get(name, name))
    of_manifests = set(PORTS) - {
        "spare proxy", "gRPC", "spare gRPC proxy", "gateway", "gateway gRPC", "kernel",
        "HAProxy's metrics", "HAProxy's statistics",
    }  # fmt: skip
    assert seen == of_manifests


def test_every_node_pins_every_port_that_ray_has() -> None:
    for document in build("gpu"):
        if document["kind"] not in CLUSTERS:
            continue
        cluster = cluster_of(document)
        of_heads = {"port", "dashboard-port", "ray-client-server-port"}
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pinned = {name for name in group["rayStartParams"] if "port" in name}
            wanted = {*RAY_PORTS, "max-worker-port"}
            assert pinned == (wanted if group is cluster["headGroupSpec"] else wanted - of_heads), (
                document["kind"]
            )


def test_the_table_has_rays_own_numbers() -> None:
    assert PORTS["HAProxy's metrics"].first == serve_constants.RAY_SERVE_HAPROXY_METRICS_PORT
    assert PORTS["HAProxy's statistics"].first == serve_constants.RAY_SERVE_HAPROXY_STATS_PORT
    gateway = PORTS["gateway"]
    assert (gateway.first, gateway.last) == (
        serve_constants.RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT,
        serve_constants.RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT,
    )
    gateway = PORTS["gateway gRPC"]
    assert (gateway.first, gateway.last) == (
        serve_constants.RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT,
        serve_constants.RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT,
    )
    assert PORTS["spare proxy"].first == serve_constants.RAY_SERVE_FALLBACK_PROXY_HTTP_PORT
    assert PORTS["spare gRPC proxy"].first == serve_constants.RAY_SERVE_FALLBACK_PROXY_GRPC_PORT
    assert PORTS["gRPC"].first == serve_constants.DEFAULT_GRPC_PORT
    assert PORTS["as-metrics"].first == AUTOSCALER_METRIC_PORT
    assert PORTS["dash-metrics"].first == DASHBOARD_METRIC_PORT
    agent = PORTS["dashboard-agent-listen-port"].first
    assert agent == ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT


def test_policies_open_no_port_that_the_table_does_not_know() -> None:
    known = {(one_port.first, one_port.last) for one_port in PORTS.values()}
    outside = {(53, 53), (443, 443), (6443, 6443)}  # DNS, the API server, HTTPS
    for policy in policies(OPTIONAL):
        for rule in [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]:
            for one_port in rule["ports"]:
                span = (one_port["port"], one_port.get("endPort", one_port["port"]))
                assert span in known | outside, (policy["metadata"]["name"], span)


# Who reaches what


def allowed_sources(target: str, known: Port, number: int) -> set[str]:
    """The ends that may reach a port of a Ray node, as the table says."""
    part, _, node_type = target.partition(" ")
    found: set[str] = set()
    # A number may belong to several: what the kernel chooses has the agent's port inside.
    here = [
        one_port
        for name, one_port in PORTS.items()
        if name != "redis" and one_port.first <= number <= one_port.last
    ]
    assert known in here
    by = {who for one_port in here for who in one_port.reached_by}
    if "node" in by:
        if (number == 8500 or 30000 <= number <= 31000) and part not in ("serve", "cluster"):
            by -= {"node"}  # where nothing is served, that is nobody's port
        else:
            found |= {f"{part} head", f"{part} worker"}
    if node_type == "head" and by & {"operator", "submitter"} and number == 8265:
        found |= {"operator", "train submitter", "nightly submitter"}
    if "prometheus" in by:
        found |= {"prometheus"}
    if number == 8000 and part == "serve":
        found |= {"client", "ingress", "ingress of k3s", "operator"}
    return found


TARGETS = [f"{part} {node_type}" for part in RAY_NODES for node_type in ("head", "worker")]


@pytest.mark.parametrize("target", TARGETS)
def test_ray_nodes_are_reached_by_those_in_the_table_and_nobody_else(target: str) -> None:
    ends = everybody()
    checked = 0
    for name, known in PORTS.items():
        if name == "redis":
            continue
        for number in known.probes():
            reached = {
                who for who, pod in ends.items() if connects(pod, ends[target], number, "TCP")
            }
            assert reached == allowed_sources(target, known, number), (name, number)
            checked += 1
    assert checked >= 25


def test_redis_is_reached_by_the_heads_that_keep_their_state_there() -> None:
    ends = everybody()
    reached = {who for who, pod in ends.items() if connects(pod, ends["redis"], 6379)}
    assert reached == {
        "serve head", "cluster head", "serve redis-cleanup", "cluster redis-cleanup",
    }  # fmt: skip
    assert not any(connects(pod, ends["redis"], 16379) for pod in ends.values())


def test_haproxys_statistics_are_nobodys() -> None:
    for pod in everybody().values():
        for number in (8404, 9101):
            assert not connects(pod, ray_pod("serve", "worker"), number)


def test_ports_between_the_known_ones_are_closed() -> None:
    head = ray_pod("serve", "head")
    for number in (22, 80, 2379, 8081, 9001, 9999, 20000, 29999, 31001, 61000, 65535):
        assert not any(connects(pod, head, number) for pod in everybody().values()), number


def test_nothing_but_tcp_passes_between_nodes() -> None:
    head, worker = ray_pod("train", "head"), ray_pod("train", "worker")
    assert connects(worker, head, 6379, "TCP")
    assert not connects(worker, head, 6379, "UDP")


def test_without_the_optional_components_nobody_comes_in_from_outside() -> None:
    head = ray_pod("serve", "head")
    assert not connects(INGRESS, head, 8000, components=())
    assert not connects(PROMETHEUS, head, 8080, components=())
    assert connects(CLIENT, head, 8000, components=())
    assert not connects(STRANGER, head, 8000, components=())


def test_an_operator_elsewhere_is_a_stranger() -> None:
    assert not connects(Pod("team-b", OPERATOR.labels), ray_pod("serve", "head"), 8265)
    assert not connects(Pod("ray-system"), ray_pod("serve", "head"), 8265)


# What goes out


def test_every_pod_finds_names_and_nothing_else_in_the_system_namespace() -> None:
    for pod in everybody().values():
        if pod.namespace == "rayward":
            assert connects(pod, DNS, 53, "UDP")
            assert connects(pod, DNS, 53, "TCP")
            assert not connects(pod, DNS, 443)


def test_only_heads_ask_the_api_server() -> None:
    reached = {
        who
        for who, pod in everybody().items()
        if pod.namespace == "rayward" and connects(pod, API_SERVER, 443)
    }
    assert reached == {f"{part} head" for part in RAY_NODES}
    assert connects(ray_pod("train", "head"), API_SERVER, 6443)
    assert not connects(ray_pod("train", "head"), API_SERVER, 10250)


def test_the_internet_is_closed_unless_somebody_opens_it() -> None:
    for pod in everybody().values():
        if pod.namespace == "rayward":
            assert not connects(pod, INTERNET, 443, components=())
            assert not connects(pod, CLOUD_METADATA, 80)
            assert not connects(pod, CLOUD_METADATA, 443)
    assert connects(ray_pod("train", "worker"), INTERNET, 443, components=("egress-https",))
    assert not connects(ray_pod("train", "worker"), INTERNET, 80, components=("egress-https",))
    assert not connects(redis(), INTERNET, 443, components=("egress-https",))


def test_the_pod_for_files_is_cut_off() -> None:
    labels = {
        "app.kubernetes.io/part-of": "rayward",
        "app.kubernetes.io/component": "files",
    }
    files = Pod(labels=labels)
    for who, pod in everybody().items():
        for number in (443, 6379, 8000, 8265, 10100, 40000):
            assert not connects(files, pod, number), who
            assert not connects(pod, files, number) or pod.namespace != "rayward", who
