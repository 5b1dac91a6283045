"""Reading the manifests as `kubectl kustomize` builds them."""

import copy
import functools
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from rayward.cluster.cli import make_app
from rayward.cluster.config.load import load_recipe, make_recipe, parse_serving
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.serving import ServingSettings
from rayward.cluster.config.shipped import find_recipe
from rayward.k8s.machines import Machine

ROOT = Path(__file__).resolve().parent.parent
K8S = ROOT / "k8s"
OVERLAYS = ("dev-cpu", "gpu", "gpu-large")
# Those that a person may add to an overlay; the others are parts of overlays.
OPTIONAL = ("egress-https", "ingress", "kueue", "monitoring")
BUILDS = [(overlay, components) for components in ((), OPTIONAL) for overlay in OVERLAYS]
Document = dict[str, Any]
RAY_KINDS = ("RayCluster", "RayJob", "RayService", "RayCronJob")
# Where each ray.io kind has its cluster, and where that is called a job.
CLUSTERS = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
}


@functools.cache
def build(overlay: str, components: tuple[str, ...] = ()) -> tuple[Document, ...]:
    """The documents of an overlay with optional components; skips where kubectl is absent."""
    if not components:
        return kustomize(K8S / "overlays" / overlay)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        lines = {
            "resources": [os.path.relpath(K8S / "overlays" / overlay, place)],
            "components": [os.path.relpath(K8S / "components" / one, place) for one in components],
        }
        (place / "kustomization.yaml").write_text(yaml.safe_dump(lines))
        return kustomize(place)


def kustomize(folder: Path) -> tuple[Document, ...]:
    """What `kubectl kustomize` makes of a folder."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, which builds the overlays")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(documents: tuple[Document, ...], kind: str) -> list[Document]:
    """The documents of a kind."""
    return [document for document in documents if document["kind"] == kind]


def one(documents: tuple[Document, ...], kind: str) -> Document:
    """The only document of a kind."""
    (found,) = of_kind(documents, kind)
    return found


def cluster_of(document: Document) -> Document:
    """The cluster in a ray.io document."""
    found = document
    for step in CLUSTERS[document["kind"]]:
        found = found[step]
    return found


def pod_templates(document: Document) -> Iterator[tuple[str, Document]]:
    """Every pod that a document describes, as metadata and spec, with its place."""
    if document["kind"] == "Pod":
        yield "", document
        return

    def walk(value: object, place: str) -> Iterator[tuple[str, Document]]:
        if isinstance(value, dict):
            if "spec" in value and "containers" in (value["spec"] or {}) and place:
                yield place, value
            for key, inner in value.items():
                yield from walk(inner, f"{place}.{key}")
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield from walk(inner, f"{place}[{index}]")

    yield from walk(document, "")


def component(document: Document) -> str:
    """Which part of the deployment a document belongs to."""
    return str(document["metadata"]["labels"]["app.kubernetes.io/component"])


def every_document() -> Iterator[Document]:
    """All documents that can be built."""
    for one_build in BUILDS:
        yield from build(*one_build)
    yield from kustomize(K8S / "components" / "files")


def serve_config(documents: tuple[Document, ...]) -> dict[str, Any]:
    """What Serve is given, as YAML."""
    config: dict[str, Any] = yaml.safe_load(one(documents, "RayService")["spec"]["serveConfigV2"])
    return config


def serving(documents: tuple[Document, ...]) -> ServingSettings:
    """The serving document in it."""
    (application,) = serve_config(documents)["applications"]
    return parse_serving(copy.deepcopy(application["args"]))


def entrypoints(documents: tuple[Document, ...]) -> list[str]:
    """What the RayJob and the RayCronJob run."""
    return [
        one(documents, "RayJob")["spec"]["entrypoint"],
        one(documents, "RayCronJob")["spec"]["jobTemplate"]["entrypoint"],
    ]


def arguments(entrypoint: str) -> dict[str, Any]:
    """An entrypoint's arguments, as the command line reads them; nothing is run."""
    program, command, *rest = shlex.split(entrypoint)
    assert program == "rayward"
    group = typer.main.get_command(make_app())
    chosen = group.commands[command]  # type: ignore[attr-defined]
    parsed: dict[str, Any] = chosen.make_context(command, rest).params
    return parsed


def find_out(entrypoint: str) -> str:
    """The run directory of an entrypoint."""
    return str(arguments(entrypoint)["out"])


def mounted(overlay: str, path: Path) -> Path:
    """The file of an overlay that its pods see at a path."""
    assert path.parts[0] == "topology"
    return K8S / "overlays" / overlay / Path(*path.parts[1:])


def recipe_of_job(documents: tuple[Document, ...], overlay: str) -> Recipe:
    """The recipe that the RayJob runs, with its overlays."""
    given = arguments(one(documents, "RayJob")["spec"]["entrypoint"])
    overlays = [mounted(overlay, Path(path)) for path in given["overlays"]]
    recipe = given["recipe"]
    source = mounted(overlay, Path(recipe)) if recipe.startswith("topology/") else recipe
    return load_recipe(find_recipe(str(source)), given["overrides"], overlays)


def nightly_recipe(documents: tuple[Document, ...], overlay: str) -> Recipe:
    """What the RayCronJob measures, as the recipe that `rayward evaluate` makes of it."""
    given = arguments(entrypoints(documents)[1])
    document = {
        "name": "evaluate",
        "data": {"path": given["data"]},
        "model": {"path": given["model"]},
        "stages": ["evaluation"],
    }
    overlays = [mounted(overlay, Path(path)) for path in given["overlays"]]
    return make_recipe(document, given["overrides"], overlays)


def machines_of(document: Document) -> list[Machine]:
    """The worker groups of a manifest as machines."""
    return [
        Machine(
            role=role,
            cpus=int(capacity(group)["CPU"]),
            memory_gib=1,
            gpus=int(capacity(group)["GPU"]),
            max_nodes=group["maxReplicas"],
        )
        for role, group in groups_by_role(document).items()
    ]


def capacity(group: Document) -> dict[str, float]:
    """What Ray sees of one pod of a worker group."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus = group["rayStartParams"].get("num-cpus", limits["cpu"])
    return {"CPU": float(cpus), "GPU": float(limits.get("nvidia.com/gpu", 0))}


def groups_by_role(document: Document) -> dict[str, Document]:
    """The worker groups of a document."""
    found = {}
    for group in cluster_of(document)["workerGroupSpecs"]:
        assert group["labels"]["role"] == group["groupName"]
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        found[group["groupName"]] = group
    return found


def gib(quantity: str) -> float:
    """A quantity of memory."""
    number, unit = re.fullmatch(r"(\d+)(Gi|Mi|Ti)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * {"Mi": 1 / 1024, "Gi": 1, "Ti": 1024}[unit]


def ray_pods(document: Document) -> list[Document]:
    """The pods of a cluster, the head first."""
    cluster = cluster_of(document)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def cores(quantity: str) -> float:
    """A quantity of processors."""
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


def asked(document: Document) -> Counter[str]:
    """What all pods of a document ask Kubernetes for, as it begins: cores, GiB and GPUs."""
    found: Counter[str] = Counter()

    def add(resources: Document, count: int = 1) -> None:
        requests = resources["requests"]
        found["cpu"] += count * cores(requests["cpu"])
        found["memory"] += count * gib(requests["memory"])
        found["nvidia.com/gpu"] += count * int(requests.get("nvidia.com/gpu", 0))

    if document["kind"] not in RAY_KINDS:
        for _, pod in pod_templates(document):
            for container in pod["spec"]["containers"]:
                add(container["resources"])
        return found
    cluster = cluster_of(document)
    counts = [1, *(group["replicas"] for group in cluster["workerGroupSpecs"])]
    for pod, count in zip(ray_pods(document), counts, strict=True):
        add(pod["containers"][0]["resources"], count)
    if "autoscalerOptions" in cluster:
        add(cluster["autoscalerOptions"]["resources"])
    job = document["spec"].get("jobTemplate", document["spec"])
    if "submitterPodTemplate" in job:
        add(job["submitterPodTemplate"]["spec"]["containers"][0]["resources"])
    return found
