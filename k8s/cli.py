"""The command line of this room: `rayward k8s ...`."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rayward.cluster.config.load import read_mapping, resolve_recipe, resolve_serving
from rayward.cluster.config.shipped import find_recipe
from rayward.cluster.errors import InputError
from rayward.cluster.options import Overlays, Overrides
from rayward.k8s.step_time import ETHERNET_GBIT

app = typer.Typer(no_args_is_help=True)
k8s_app = typer.Typer(
    help="Size a run, and write the manifests that run it on Kubernetes.", no_args_is_help=True
)
app.add_typer(k8s_app, name="k8s")

_SERVES = {"http", "keys", "reward", "policy", "jobs"}
# KubeRay makes the names of pods and services out of a job's or a service's.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PORT = 8000


@k8s_app.command()
def render(
    document: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|SERVING",
            help="A recipe, the name of one that comes with Rayward, or a serving document.",
        ),
    ],
    overlays: Overlays = None,
    overrides: Overrides = None,
    kind: Annotated[
        Literal["job", "service"] | None,
        typer.Option(help="Default: a service for a serving document, else a job."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Default: the recipe's, or rayward.")] = None,
    image: Annotated[
        str | None,
        typer.Option(help="Default: the one of k8s/base; with GPUs its tag ends in -cuda."),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Where everything goes.")] = "rayward",
    node_cpus: Annotated[
        int,
        typer.Option(
            min=1,
            help="CPUs that a pod may have of every worker node: of its allocatable ones, what "
            "daemons leave.",
        ),
    ] = 8,
    node_memory_gib: Annotated[int, typer.Option(min=1, help="Memory, likewise.")] = 32,
    node_gpus: Annotated[int, typer.Option(min=0, help="GPUs of every worker node.")] = 0,
    machines: Annotated[
        Path | None,
        typer.Option(help="YAML: worker groups of different nodes, in place of --node-..."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: standard output.")] = None,
) -> None:
    """Write the RayJob or RayService of a document, with worker groups that it fits on."""
    # What counts roles imports Ray.
    from rayward.k8s.machines import load_machines, uniform_machines
    from rayward.k8s.packing import plan_nodes
    from rayward.k8s.render import Target, render_job, render_service, serving_moment, to_yaml
    from rayward.pipelines.run.capacity import moments

    path = find_recipe(document)
    raw = read_mapping(path, "document", "a YAML mapping: a recipe or a serving document")
    is_service = kind == "service" if kind else bool(_SERVES & raw.keys()) and "data" not in raw
    if is_service:
        merged, served = resolve_serving(path, overrides, overlays)
        if served.http.port != _PORT:
            expected = f"{_PORT}, which the manifests let through"
            raise InputError("http.port", served.http.port, expected)
        asked = [serving_moment(served)]
    else:
        recipe = resolve_recipe(path, overrides, overlays)
        asked = moments(recipe)
    selectors = [
        (f"{moment.name}: {one.name}", one.resources.labels)
        for moment in asked
        for one in moment.requests
    ]
    groups = (
        uniform_machines(selectors, node_cpus, node_memory_gib, node_gpus)
        if machines is None
        else load_machines(machines)
    )
    called = name or ("rayward" if is_service else recipe.name)
    if not _NAME.fullmatch(called):
        expected = "at most 47 lower-case letters, digits and hyphens, the first one a letter"
        raise InputError("--name", called, expected)
    if not _NAMESPACE.fullmatch(namespace):
        expected = "at most 63 lower-case letters, digits and hyphens, none of these at an end"
        raise InputError("--namespace", namespace, expected)
    target = Target(called, namespace, image)
    if is_service:
        written = render_service(merged, served, groups, target)
    else:
        written = render_job(recipe, plan_nodes(asked, groups), groups, target)
    text = to_yaml(written)
    if out is None:
        sys.stdout.write(text)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError("--out", str(out), f"a file that can be written ({error})") from error


@k8s_app.command()
def sizing(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe, or the name of one that comes with Rayward; default: its defaults "
            "with the topology of the gpu overlay, or of gpu-large above 20B parameters."
        ),
    ] = None,
    overlays: Overlays = None,
    overrides: Overrides = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="PATH_OR_ID",
            help="A transformers directory or hub id in place of Llama 2's 7B, 13B and 70B; "
            "may be repeated.",
        ),
    ] = None,
    gpu_memory_gib: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Memory of a GPU, in GiB; default: that of the GPUs which the default topology is "
            "for, 80 or 167; 80 for a recipe of yours.",
        ),
    ] = None,
    network_gbit: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Network of a node of 8 GPUs to the others, in Gbit/s. Pods have TCP by Ethernet; "
            "with RDMA it is up to 1600.",
        ),
    ] = ETHERNET_GBIT,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a recipe takes with models of several sizes: memory, GPUs, nodes, where time goes."""
    from rayward.k8s.shapes import LLAMA_2, read_shape
    from rayward.k8s.sizing import GPU_MEMORY_GIB, default_gpu_memory_gib, default_recipe, size
    from rayward.k8s.sizing_table import to_document, write_tables

    shapes = [read_shape(model) for model in models] if models else list(LLAMA_2.values())
    found = []
    for shape in shapes:
        if recipe is None:
            resolved = default_recipe(shape, overrides, overlays)
            memory = default_gpu_memory_gib(shape)
        else:
            resolved = resolve_recipe(find_recipe(recipe), overrides, overlays)
            memory = GPU_MEMORY_GIB["gpu"]
        found.append(size(resolved, shape, gpu_memory_gib or memory, network_gbit))
    if as_json:
        documents: list[dict[str, Any]] = [to_document(one) for one in found]
        print(json.dumps(documents, indent=1))
    else:
        write_tables(found)
