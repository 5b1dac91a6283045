"""`rayward k8s render`: what it writes is what the operator, Serve and Rayward take."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from rayward.cluster.cli import main
from rayward.cluster.config.load import parse_recipe, parse_serving, resolve_recipe
from rayward.cluster.config.shipped import shipped_recipes
from rayward.k8s.machines import load_machines
from rayward.k8s.packing import place, plan_nodes
from rayward.pipelines.run.capacity import moments
from tests.k8s.test_manifests import checker
from tests.k8s.test_serve_config import unknown_keys
from tests.manifests import K8S, OVERLAYS, arguments, build, gib, one, pod_templates

SERVING = {
    "reward": {
        "safety": {"path": "runs/demo/models/reward_safety", "replicas": 2},
        "helpfulness": {"path": "runs/demo/models/reward_helpfulness", "replicas": 2},
        "policy": "runs/demo/models/context_distillation",
    },
    "policy": {"path": "runs/demo/models/context_distillation", "resources": {"cpus": 2.0}},
    "jobs": {},
}
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*given: object) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["rayward", "k8s", "render", *map(str, given)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code, said.err) == (0, "")
        return list(yaml.safe_load_all(said.out))

    return run


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    def run(*given: object) -> str:
        monkeypatch.setattr(sys, "argv", ["rayward", "k8s", "render", *map(str, given)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, "")
        (line,) = said.err.splitlines()
        return line.removeprefix("rayward: ")

    return run


@pytest.fixture
def serving(tmp_path: Path) -> Path:
    path = tmp_path / "serving.yaml"
    path.write_text(yaml.safe_dump(SERVING))
    return path


def groups_of(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def limits_of(group: dict[str, Any]) -> dict[str, str]:
    limits: dict[str, str] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return limits


@pytest.mark.parametrize("topology", [None, *OVERLAYS])
@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_pass_the_strict_checker(
    render: Run, name: str, topology: str | None
) -> None:
    given: list[object] = [name]
    machines = None
    if topology is not None:
        folder = K8S / "overlays" / topology
        given += ["--overlay", folder / "topology.yaml", "--machines", folder / "machines.yaml"]
        machines = load_machines(folder / "machines.yaml")
    config_map, job = render(*given)
    kubernetes_validate.validate(config_map, "1.37", strict=True)
    errors, documents, checked = checker().check_text(
        yaml.safe_dump_all([config_map, job]), operator=True
    )
    assert (errors, documents, checked) == ([], 2, 1)

    # The recipe in the pods is the one that was planned for, and their nodes hold all of it.
    recipe = parse_recipe(yaml.safe_load(config_map["data"]["recipe.yaml"]))
    overlays = [] if topology is None else [K8S / "overlays" / topology / "topology.yaml"]
    assert recipe == resolve_recipe(shipped_recipes()[name], None, overlays)
    groups = groups_of(job)
    for role, group in groups.items():
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] >= 1
        assert group["labels"]["role"] == role
    if machines is None:
        assert {role: group["replicas"] for role, group in groups.items()} == {"cpu": 1}
        return
    counts = {role: group["replicas"] for role, group in groups.items()}
    assert counts == plan_nodes(moments(recipe), machines)
    for moment in moments(recipe):
        assert place(moment.gangs, machines, counts).left is None
    offered = {machine.role: machine for machine in machines}
    for role, group in groups.items():
        starts, limits = group["rayStartParams"], limits_of(group)
        assert starts["num-cpus"] == limits["cpu"] == str(offered[role].cpus)
        assert starts["num-gpus"] == limits.get("nvidia.com/gpu", "0") == str(offered[role].gpus)
        assert limits["memory"] == f"{offered[role].memory_gib}Gi"
        assert all(isinstance(value, str) for value in starts.values())


def test_the_job_runs_its_own_recipe(render: Run) -> None:
    config_map, job = render(
        "demo", "--name", "mine", "--namespace", "lab", "--image", "here/rayward:1",
        "--set", "ppo.steps=3", "--set", "seed=7",
    )  # fmt: skip
    for document in (config_map, job):
        assert document["metadata"]["namespace"] == "lab"
        assert document["metadata"]["labels"]["app.kubernetes.io/component"] == "train"
    assert (config_map["metadata"]["name"], job["metadata"]["name"]) == ("mine-recipe", "mine")
    recipe = yaml.safe_load(config_map["data"]["recipe.yaml"])
    assert (recipe["ppo"]["steps"], recipe["seed"]) == (3, 7)
    given = arguments(job["spec"]["entrypoint"])
    assert shlex.split(job["spec"]["entrypoint"])[:3] == ["rayward", "run", "topology/recipe.yaml"]
    assert (str(given["out"]), given["auto_resume"], given["address"]) == (
        "runs/mine",
        True,
        "auto",
    )
    images, mounted = set(), 0
    for _, template in pod_templates(job):
        pod = template["spec"]
        images |= {container["image"] for container in pod["containers"]}
        for volume in pod.get("volumes", []):
            if "configMap" in volume:
                assert volume["configMap"]["name"] == "mine-recipe"
                mounted += 1
    assert images == {"here/rayward:1"}
    assert mounted == 2  # the head and its workers; the submitter reads nothing


def test_relative_paths_stay_relative(
    render: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of the pods, whatever lies here."""
    (tmp_path / "data" / "hh").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config_map, _ = render("hh-rlhf")
    assert yaml.safe_load(config_map["data"]["recipe.yaml"])["data"]["path"] == "data/hh"


def test_nodes_of_one_kind(render: Run) -> None:
    """The demo asks for 6 CPUs at its widest, one for each role."""
    for cpus, nodes in ((6, 1), (8, 1), (5, 2), (3, 2), (2, 3)):
        _, job = render("demo", "--node-cpus", cpus, "--node-memory-gib", 9)
        group = groups_of(job)["cpu"]
        assert group["replicas"] == nodes, cpus
        assert (limits_of(group)["cpu"], limits_of(group)["memory"]) == (str(cpus), "9Gi")
        pod = group["template"]["spec"]
        shared = {
            v["name"]: v["emptyDir"].get("sizeLimit") for v in pod["volumes"] if "emptyDir" in v
        }
        assert (shared["shm"], shared["tmp"]) == ("3Gi", "20Gi")  # 30 % of the memory, rounded up
        assert "tolerations" not in pod


@pytest.mark.parametrize("memory", [1, 5, 8, 11, 768])
def test_shared_memory_holds_rays_object_store(render: Run, memory: int) -> None:
    _, job = render("demo", "--node-memory-gib", memory)
    shared = gib(volumes_of(groups_of(job)["cpu"])["shm"])
    assert 0.3 * memory <= shared < 0.3 * memory + 1


def volumes_of(group: dict[str, Any]) -> dict[str, str]:
    """The sizes of a pod's own volumes."""
    volumes = group["template"]["spec"]["volumes"]
    return {one["name"]: one["emptyDir"]["sizeLimit"] for one in volumes if "emptyDir" in one}


@pytest.mark.parametrize("overlay", ["gpu", "gpu-large"])
def test_with_gpus_it_is_as_in_the_overlays(render: Run, overlay: str) -> None:
    """The image, the deadline and the disk: an image for CPUs would see no GPU."""
    folder = K8S / "overlays" / overlay
    _, job = render(
        "demo", "--overlay", folder / "topology.yaml", "--machines", folder / "machines.yaml"
    )
    there = one(build(overlay), "RayJob")
    images = {
        container["image"]
        for document in (job, there)
        for _, pod in pod_templates(document)
        for container in pod["spec"]["containers"]
    }
    assert len(images) == 1
    assert images.pop().endswith("-cuda")
    assert job["spec"]["activeDeadlineSeconds"] == there["spec"]["activeDeadlineSeconds"]
    groups, known = groups_of(job), groups_of(there)
    assert len(groups) == 3
    for role, group in groups.items():
        assert volumes_of(group) == volumes_of(known[role])


def test_an_image_that_is_named_is_the_image(render: Run) -> None:
    image = "registry.example.com/rayward:mine"
    _, job = render("demo", "--node-gpus", 1, "--image", image)
    for _, pod in pod_templates(job):
        assert {container["image"] for container in pod["spec"]["containers"]} == {image}


def test_gpus_custom_resources_and_fewer_cores(render: Run, tmp_path: Path) -> None:
    machines = tmp_path / "machines.yaml"
    machines.write_text(
        "groups:\n"
        "  - {role: big, cpus: 12, cores: 3, memory_gib: 64, gpus: 2, custom: {tpu: 4.0}}\n"
    )
    changes = ["ppo.policy.resources.gpus=1.0", "ppo.rollout.resources.custom={tpu: 3.0}"]
    _, job = render("demo", "--machines", machines, *(f"--set={one}" for one in changes))
    group = groups_of(job)["big"]
    assert limits_of(group) == {"cpu": "12", "memory": "64Gi", "nvidia.com/gpu": "2"}
    requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert requests == {"cpu": "3", "memory": "64Gi", "nvidia.com/gpu": "2"}
    # A shell takes off one pair of quotes, and Ray reads what is left.
    (word,) = shlex.split(group["rayStartParams"]["resources"])
    assert json.loads(word) == {"tpu": 4.0}
    (toleration,) = group["template"]["spec"]["tolerations"]
    assert toleration["key"] == "nvidia.com/gpu"


def test_a_service_passes_the_checkers(render: Run, serving: Path) -> None:
    config_map, service = render(serving, "--node-cpus", 4)
    kubernetes_validate.validate(config_map, "1.37", strict=True)
    errors, _, checked = checker().check_text(yaml.safe_dump(service), operator=True)
    assert (errors, checked) == ([], 1)
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert unknown_keys(ServeDeploySchema, config) == []
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    settings = parse_serving(application["args"])
    assert (settings.http.host, settings.http.port) == ("0.0.0.0", 8000)
    assert settings.keys.path == "keys/keys.json"
    assert application["args"] == yaml.safe_load(config_map["data"]["serving.yaml"])
    assert settings.policy is not None
    assert settings.policy.path == SERVING["policy"]["path"]  # type: ignore[index]
    # Four reward replicas of 1 CPU and a policy of 2, on nodes of 4.
    group = groups_of(service)["cpu"]
    assert (group["replicas"], group["minReplicas"]) == (2, 2)
    _, service = render(serving, "--node-cpus", 4, "--set", "jobs=null")
    # One for each replica, where they are in each other's way.
    assert groups_of(service)["cpu"]["maxReplicas"] == 5


def test_serve_waits_longer_than_the_gateway(render: Run, serving: Path) -> None:
    for change, seconds in (("{}", 630), ("{generation_timeout_s: 900.0}", 930)):
        _, service = render(serving, "--set", f"http={change}")
        config = yaml.safe_load(service["spec"]["serveConfigV2"])
        assert config["http_options"]["request_timeout_s"] == seconds


def test_a_service_on_labelled_machines(render: Run, serving: Path, tmp_path: Path) -> None:
    topology = tmp_path / "topology.yaml"
    topology.write_text(
        "reward:\n"
        "  safety: {resources: &reward {gpus: 0.5, labels: {role: reward}}}\n"
        "  helpfulness: {resources: *reward}\n"
        "policy: {replicas: 3, resources: {gpus: 1.0, labels: {role: rollout}}}\n"
        "keys: {path: keys/other.json}\n"
    )
    machines = tmp_path / "machines.yaml"
    machines.write_text(
        "groups:\n"
        "  - {role: reward, cpus: 8, memory_gib: 32, gpus: 1}\n"
        "  - {role: rollout, cpus: 8, memory_gib: 32, gpus: 1, max_nodes: 3}\n"
        "  - {role: cpu, cpus: 8, memory_gib: 32}\n"
    )
    config_map, service = render(
        serving,
        *("--overlay", topology, "--machines", machines, "--name", "two", "--set", "jobs=null"),
    )
    counts = {
        role: (group["replicas"], group["maxReplicas"])
        for role, group in groups_of(service).items()
    }
    assert counts == {"reward": (2, 7), "rollout": (3, 3)}
    assert (config_map["metadata"]["name"], service["metadata"]["name"]) == ("two-serving", "two")
    assert yaml.safe_load(config_map["data"]["serving.yaml"])["keys"]["path"] == "keys/other.json"


@pytest.mark.parametrize("jobs", [True, False])
def test_a_service_has_machines_for_its_jobs(
    render: Run, serving: Path, tmp_path: Path, jobs: bool
) -> None:
    machines = tmp_path / "machines.yaml"
    machines.write_text(
        "groups:\n"
        "  - {role: cpu, cpus: 8, memory_gib: 32}\n"
        "  - {role: learner, cpus: 8, memory_gib: 64, gpus: 8, max_nodes: 2}\n"
    )
    asked = ["--set", "jobs={}"] if jobs else ["--set", "jobs=null"]
    _, service = render(serving, "--machines", machines, *asked)
    counts = {
        role: (group["replicas"], group["minReplicas"], group["maxReplicas"])
        for role, group in groups_of(service).items()
    }
    images = {
        container["image"].rpartition("-")[2]
        for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    }
    # The service's own replicas ask for six CPUs; its five replicas for a node each, at most.
    assert counts["cpu"] == (1, 1, 2**31 - 1 if jobs else 5)
    assert counts.get("learner") == ((0, 0, 2) if jobs else None)
    assert (images == {"cuda"}) is jobs


def test_what_cannot_be_rendered_is_refused(
    refused: Callable[..., str], serving: Path, tmp_path: Path
) -> None:
    assert refused("demo", "--node-cpus", 1) == (
        "sft: resources: got {'CPU': 2.0}, expected no more than one node offers: "
        "cpu has {'CPU': 1}"
    )
    gpu = K8S / "overlays" / "gpu"
    line = refused("demo", "--overlay", gpu / "topology.yaml", "--node-cpus", 48)
    assert line == (
        "sft: resources: got {'CPU': 4.0, 'GPU': 1.0}, expected no more than one node offers: "
        "learner has {'CPU': 48}"
    )
    line = refused(
        "demo", "--overlay", gpu / "topology.yaml", "--machines", gpu / "machines.yaml",
        "--set", "ppo.policy.deepspeed.ranks=16", "--set", "ppo.colocate=[]",
    )  # fmt: skip
    assert line.endswith("of ppo to fit on the nodes that there may be: 2 of learner")
    assert refused("demo", "--name", "x" * 48).startswith("--name: got 'xxx")
    assert refused("demo", "--name", "Demo").startswith("--name: got 'Demo'")
    for namespace in ("Foo_Bar", "", "-lab", "lab-", "x" * 64, "a.b"):
        line = refused("demo", "--namespace", namespace)
        assert line.startswith(f"--namespace: got {namespace!r}, expected at most 63 lower-case")
    assert refused("demmo").startswith("recipe: got 'demmo', expected a YAML file, or one of")
    assert refused(serving, "--set", "http.port=9000") == (
        "http.port: got 9000, expected 8000, which the manifests let through"
    )
    assert refused(serving, "--set", "policy.best=2").startswith("policy.best: got 2, expected a")
    line = refused(serving, "--set", "policy.resources.cpus=9")
    assert line.startswith("serving: policy: resources: got {'CPU': 9.0}, expected no more than")
    assert refused("demo", "--kind", "service").startswith("name: got 'demo', expected a known")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("policy: {replica: 2}\n")
    assert refused(serving, "--overlay", overlay).startswith(f"{overlay}: policy.replica: got 2")
    out = tmp_path / "none" / "out.yaml"
    assert refused("demo", "--out", out).startswith(f"--out: got '{out}', expected a file that")


def test_manifests_go_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "job.yaml"
    monkeypatch.setattr(sys, "argv", ["rayward", "k8s", "render", "demo", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().out) == (0, "")
    assert [one["kind"] for one in yaml.safe_load_all(out.read_text())] == ["ConfigMap", "RayJob"]
    # The recipe is a text of several lines, for people.
    assert "  recipe.yaml: |\n    name: demo\n" in out.read_text()
