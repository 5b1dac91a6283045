"""From a recipe or a serving document to the manifests that run it, with nodes that fit it.

document -> what it asks for at a time -> nodes of each group -> base manifest, filled in
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.resources import files
from math import ceil
from typing import Any

import yaml

from rayward.cluster.config.load import parse_yaml
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.serving import ServingSettings
from rayward.cluster.ray_runtime.placement import RoleRequest
from rayward.cluster.types import AXES
from rayward.k8s.machines import Machine
from rayward.k8s.packing import plan_nodes
from rayward.pipelines.run.capacity import Gang, Moment

_MOUNTED = "/rayward/topology"
_IN_POD = "topology"
_KEYS = "keys/keys.json"
_PART_OF = "app.kubernetes.io/part-of"
_COMPONENT = "app.kubernetes.io/component"
# Ray keeps objects in shared memory, by default up to 30 % of a node's; else on disk.
_SHARED = 0.3
# As in the overlays for GPUs: larger models spill more objects, and take days.
_GPU_TMP = "200Gi"
_GPU_DEADLINE_S = 7 * 24 * 3600
# KubeRay's own default.
_UNBOUNDED = 2**31 - 1


@dataclass(frozen=True)
class Target:
    """What the manifests are called, and where they go."""

    name: str
    namespace: str
    image: str | None = None
    """Null: the base's, or its -cuda where there are GPUs."""


def render_job(
    recipe: Recipe, nodes: Mapping[str, int], machines: Sequence[Machine], target: Target
) -> list[dict[str, Any]]:
    """A ConfigMap with the recipe, and the RayJob that runs it.

    Args:
        recipe: with paths as the pods see them.
        nodes: of each group, as `plan_nodes` has them.
        machines: the groups.
        target: names.
    """
    job = _base("rayjob.yaml")
    settings = _config_map(target, "recipe", recipe.model_dump(mode="json"), job)
    spec = job["spec"]
    spec["entrypoint"] = (
        f"rayward run {_IN_POD}/recipe.yaml --out runs/{target.name} --auto-resume --address auto"
    )
    if _has_gpus(machines, nodes):
        spec["activeDeadlineSeconds"] = _GPU_DEADLINE_S
    cluster = spec["rayClusterSpec"]
    # A run keeps its nodes to its end: it waits minutes for room, and no longer.
    cluster["workerGroupSpecs"] = _worker_groups(cluster, machines, nodes, nodes)
    return [settings, _finished(job, target, settings, _has_gpus(machines, nodes))]


def render_service(
    document: Mapping[str, Any],
    settings: ServingSettings,
    machines: Sequence[Machine],
    target: Target,
) -> list[dict[str, Any]]:
    """A ConfigMap with the serving document, and the RayService that serves it.

    Args:
        document: as it was written; it listens to all and asks for keys, whatever it says.
        settings: the same, parsed.
        machines: the groups.
        target: names.

    Raises:
        InputError: what is served does not fit the machines.
    """
    asked = serving_moment(settings)
    nodes = plan_nodes([asked], machines)
    arguments = deepcopy(dict(document))
    arguments["http"] = {**(arguments.get("http") or {}), "host": "0.0.0.0"}
    if settings.keys.path is None:
        # It would refuse to start: whoever reaches the port could ask.
        arguments["keys"] = {**(arguments.get("keys") or {}), "path": _KEYS}
    service = _base("rayservice.yaml")
    config_map = _config_map(target, "serving", arguments, service)
    spec = service["spec"]
    serve: Any = parse_yaml(spec["serveConfigV2"])
    serve["applications"][0]["args"] = arguments
    serve["http_options"]["port"] = settings.http.port
    longest = max(settings.http.request_timeout_s, settings.http.generation_timeout_s)
    slack = serve["http_options"]["request_timeout_s"] - _default_timeout()
    serve["http_options"]["request_timeout_s"] = longest + slack
    spec["serveConfigV2"] = yaml.safe_dump(serve, sort_keys=False)
    cluster = spec["rayClusterConfig"]
    if settings.jobs is None:
        # Serve spreads replicas over nodes, and small ones may be in a large one's way: then one
        # more node comes, up to one for each replica.
        most = {
            one.role: min(_replicas(asked), one.max_nodes or _replicas(asked))
            for one in machines
            if one.role in nodes
        }
    else:
        # Which machines a job takes its own recipe says: they come when it asks for them.
        nodes = {one.role: nodes.get(one.role, 0) for one in machines}
        most = {one.role: one.max_nodes or _UNBOUNDED for one in machines}
    cluster["workerGroupSpecs"] = _worker_groups(cluster, machines, nodes, most)
    return [config_map, _finished(service, target, config_map, _has_gpus(machines, nodes))]


def serving_moment(settings: ServingSettings) -> Moment:
    """What a service asks for: each replica is placed by itself."""
    deployments: dict[str, Any] = {}
    if settings.reward is not None:
        deployments = {axis: getattr(settings.reward, axis) for axis in AXES}
    served = {**deployments, "policy": settings.policy}
    gangs = [
        Gang([RoleRequest(name, 1, one.resources)])
        for name, one in served.items()
        if one is not None
        for _ in range(one.replicas)
    ]
    return Moment("serving", gangs)


def to_yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    """Several documents as one text; texts of several lines stay readable."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401 (PyYAML's own)
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _base(name: str) -> dict[str, Any]:
    text = (files("rayward.k8s") / "base" / name).read_text(encoding="utf-8")
    (document,) = (one for one in yaml.safe_load_all(text) if one is not None)
    manifest: dict[str, Any] = document
    return manifest


def _default_timeout() -> float:
    return float(ServingSettings.model_fields["http"].default.generation_timeout_s)


def _replicas(moment: Moment) -> int:
    return sum(request.processes for request in moment.requests)


def _config_map(
    target: Target, kind: str, document: Mapping[str, Any], of: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{target.name}-{kind}",
            "namespace": target.namespace,
            "labels": dict(of["metadata"].get("labels", {})),
        },
        "data": {f"{kind}.yaml": yaml.safe_dump(dict(document), sort_keys=False)},
    }


def _has_gpus(machines: Sequence[Machine], nodes: Mapping[str, int]) -> bool:
    return any(machine.gpus for machine in machines if machine.role in nodes)


def _worker_groups(
    cluster: Mapping[str, Any],
    machines: Sequence[Machine],
    nodes: Mapping[str, int],
    most: Mapping[str, int],
) -> list[dict[str, Any]]:
    pattern = cluster["workerGroupSpecs"][0]
    groups = [
        _worker_group(pattern, machine, nodes[machine.role], most[machine.role])
        for machine in machines
        if machine.role in nodes
    ]
    if _has_gpus(machines, nodes):
        for group in groups:
            for volume in group["template"]["spec"]["volumes"]:
                if volume["name"] == "tmp":
                    volume["emptyDir"]["sizeLimit"] = _GPU_TMP
    return groups


def _worker_group(
    pattern: Mapping[str, Any], machine: Machine, count: int, most: int
) -> dict[str, Any]:
    group = deepcopy(dict(pattern))
    group.update(
        groupName=machine.role,
        labels=machine.all_labels,
        replicas=count,
        minReplicas=count,
        maxReplicas=max(count, most),
    )
    starts = {"num-cpus": str(machine.cpus), "num-gpus": str(machine.gpus)}
    if machine.custom:
        # KubeRay hands it to a shell, which takes off the outer quotes.
        starts["resources"] = json.dumps(json.dumps(machine.custom))
    group["rayStartParams"] = {**group["rayStartParams"], **starts}
    pod = group["template"]["spec"]
    asked = {"cpu": str(machine.cores or machine.cpus), "memory": f"{machine.memory_gib}Gi"}
    if machine.gpus:
        asked["nvidia.com/gpu"] = str(machine.gpus)
        pod["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    limits = {**asked, "cpu": str(max(machine.cores or 0, machine.cpus))}
    pod["containers"][0]["resources"] = {"requests": asked, "limits": limits}
    for volume in pod["volumes"]:
        if (volume.get("emptyDir") or {}).get("medium") == "Memory":
            volume["emptyDir"]["sizeLimit"] = f"{ceil(_SHARED * machine.memory_gib)}Gi"
    return group


def _finished(
    manifest: dict[str, Any], target: Target, config_map: Mapping[str, Any], has_gpus: bool
) -> dict[str, Any]:
    """The manifest with its names, its image, and its document where the topology would be."""
    manifest["metadata"] = {
        **manifest["metadata"],
        "name": target.name,
        "namespace": target.namespace,
    }
    for pod in _pods(manifest["spec"]):
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            if target.image is not None:
                container["image"] = target.image
            elif has_gpus:
                container["image"] += "-cuda"
        mounted = {
            mount["name"]
            for container in pod["containers"]
            for mount in container.get("volumeMounts", [])
            if mount["mountPath"] == _MOUNTED
        }
        for volume in pod.get("volumes", []):
            if volume["name"] in mounted:
                volume["configMap"] = {"name": config_map["metadata"]["name"]}
    return manifest


def _pods(node: object) -> Iterator[dict[str, Any]]:
    """Every pod's specification in a manifest."""
    if isinstance(node, dict):
        if isinstance(node.get("containers"), list):
            yield node
        for value in node.values():
            yield from _pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from _pods(value)
