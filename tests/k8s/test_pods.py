"""The pods: what they may, where they write, and how their clusters are set up."""

import copy
import math

import yaml
from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION

from tests.manifests import (
    K8S,
    OPTIONAL,
    RAY_KINDS,
    Document,
    asked,
    build,
    cluster_of,
    component,
    cores,
    every_document,
    gib,
    groups_by_role,
    of_kind,
    one,
    pod_templates,
    ray_pods,
)


def test_no_pod_may_more_than_it_needs() -> None:
    accounts = {d["metadata"]["name"] for d in of_kind(build("gpu"), "ServiceAccount")}
    priorities = {d["metadata"]["name"] for d in of_kind(build("gpu"), "PriorityClass")}
    seen = 0
    for document in every_document():
        for place, pod in pod_templates(document):
            seen += 1
            spec, who = pod["spec"], f"{document['kind']}{place}"
            own = spec["securityContext"]
            assert own["runAsNonRoot"] is True, who
            assert own["runAsUser"] >= 10000, who  # none of the machine's own
            assert own["seccompProfile"] == {"type": "RuntimeDefault"}, who
            assert spec["automountServiceAccountToken"] is False, who
            assert spec["serviceAccountName"] in accounts, who
            assert spec.get("priorityClassName") in {*priorities, None}, who
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), who
            for container in [*spec["containers"], *spec.get("initContainers", [])]:
                assert_locked_down(container["securityContext"], who)
                assert_bounded(container["resources"], who)
        if document["kind"] in RAY_KINDS:
            options = cluster_of(document).get("autoscalerOptions")
            if options is not None:
                assert_locked_down(options["securityContext"], document["kind"])
                assert_bounded(options["resources"], document["kind"])
    assert seen >= 60


def assert_locked_down(context: Document, who: str) -> None:
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }, who


def assert_bounded(resources: Document, who: str) -> None:
    limits, requests = resources["limits"], resources["requests"]
    assert limits["memory"] == requests["memory"], who
    assert limits.get("nvidia.com/gpu") == requests.get("nvidia.com/gpu"), who
    assert {"cpu"} <= set(limits) & set(requests), who


def test_what_a_pod_mounts_is_there(documents: tuple[Document, ...]) -> None:
    there = {
        kind: {document["metadata"]["name"] for document in of_kind(documents, kind)}
        for kind in ("ConfigMap", "PersistentVolumeClaim")
    }
    for document in documents:
        for place, pod in pod_templates(document):
            spec, who = pod["spec"], f"{document['kind']}{place}"
            volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
            claimed = {
                claim["metadata"]["name"]
                for claim in document["spec"].get("volumeClaimTemplates", [])
            }
            for container in spec["containers"]:
                for mount in container.get("volumeMounts", []):
                    assert mount["name"] in {*volumes, *claimed}, who
            for volume in volumes.values():
                if "persistentVolumeClaim" in volume:
                    claim = volume["persistentVolumeClaim"]["claimName"]
                    assert claim in there["PersistentVolumeClaim"], who
                if "configMap" in volume:
                    assert volume["configMap"]["name"] in there["ConfigMap"], who


def test_ray_pods_can_write_where_ray_and_the_models_do(documents: tuple[Document, ...]) -> None:
    for kind in RAY_KINDS:
        for spec in ray_pods(one(documents, kind)):
            volumes = {volume["name"]: volume for volume in spec["volumes"]}
            (container,) = spec["containers"]
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            home = next(each["value"] for each in container["env"] if each["name"] == "HOME")
            assert container["workingDir"] == "/rayward"
            for path in ("/tmp", home, "/dev/shm"):
                volume = volumes[mounts[path]["name"]]
                assert "sizeLimit" in volume["emptyDir"], path
                assert not mounts[path].get("readOnly"), path
            assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
            # What is in shared memory counts as the container's.
            memory = gib(container["resources"]["limits"]["memory"])
            shared = gib(volumes["shm"]["emptyDir"]["sizeLimit"])
            assert shared <= memory / 2
            # Ray's object store takes 30 %; where it finds less it goes to /tmp, on the disk.
            assert shared >= math.ceil(DEFAULT_OBJECT_STORE_MEMORY_PROPORTION * memory)
            for path in ("/rayward/runs", "/rayward/data", "/rayward/models"):
                assert "persistentVolumeClaim" in volumes[mounts[path]["name"]]
                assert mounts[path]["subPath"] == path.removeprefix("/rayward/")


def test_only_the_autoscaler_has_a_token_of_the_api_server(
    documents: tuple[Document, ...],
) -> None:
    for kind in RAY_KINDS:
        cluster = cluster_of(one(documents, kind))
        for spec in ray_pods(one(documents, kind)):
            mounted_ = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
            assert "autoscaler-token" not in mounted_
        if "autoscalerOptions" in cluster:
            mounts = {m["name"]: m for m in cluster["autoscalerOptions"]["volumeMounts"]}
            assert mounts["autoscaler-token"]["readOnly"] is True
            path = mounts["autoscaler-token"]["mountPath"]
            from ray.autoscaler._private.kuberay import node_provider

            assert f"{path}/token" == node_provider.IN_CLUSTER_TOKEN_PATH
            assert f"{path}/ca.crt" == node_provider.IN_CLUSTER_CA_CERT_PATH


def test_pods_of_the_base_differ_only_where_their_work_does() -> None:
    seen = []
    for kind in RAY_KINDS:
        document = yaml.safe_load((K8S / "base" / f"{kind.lower()}.yaml").read_text())
        cluster = copy.deepcopy(cluster_of(document))
        own = component(document)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            template = group["template"]
            assert template["metadata"]["labels"].pop("app.kubernetes.io/component") == own
            template["spec"].pop("priorityClassName")
            container = template["spec"]["containers"][0]
            container["ports"] = [p for p in container["ports"] if p["name"] != "serve"]
            for part in (container["volumeMounts"], template["spec"]["volumes"]):
                part[:] = [each for each in part if each["name"] != "keys"]
        cluster.pop("gcsFaultToleranceOptions", None)
        seen.append(cluster)
    assert all(cluster == seen[0] for cluster in seen)


# Clusters


def test_clusters_are_as_kuberay_wants_them(documents: tuple[Document, ...]) -> None:
    queued = bool(of_kind(documents, "LocalQueue"))
    for kind in RAY_KINDS:
        document = one(documents, kind)
        cluster = cluster_of(document)
        assert cluster["authOptions"] == {"mode": "token", "secretName": "rayward-auth-token"}
        if queued and kind in ("RayJob", "RayCluster"):  # Kueue counts a fixed number of pods
            assert "enableInTreeAutoscaling" not in cluster
            assert "autoscalerOptions" not in cluster
        else:
            assert cluster["enableInTreeAutoscaling"] is True
            assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        # A job's driver dies with its head, so only what outlives a head keeps its state.
        assert ("gcsFaultToleranceOptions" in cluster) == (kind in ("RayCluster", "RayService"))
        for spec in ray_pods(document):
            assert not {"livenessProbe", "readinessProbe"} & set(spec["containers"][0])


def test_redis_is_what_the_clusters_name(documents: tuple[Document, ...]) -> None:
    redis, service = one(documents, "StatefulSet"), one(documents, "Service")
    (port,) = service["spec"]["ports"]
    options = cluster_of(one(documents, "RayService"))["gcsFaultToleranceOptions"]
    address = f"redis://{service['metadata']['name']}:{port['port']}"
    assert options["redisAddress"] == address
    (container,) = redis["spec"]["template"]["spec"]["containers"]
    password = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    (volume,) = redis["spec"]["template"]["spec"]["volumes"]
    assert volume["secret"]["secretName"] == password["name"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    place = f"{mounts[volume['name']]}/{password['key']}"
    assert f"requirepass $(cat {place})" in container["args"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert place in container[probe]["exec"]["command"][-1]
    labels = redis["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


def test_budgets_are_of_the_only_kind_that_works_here(overlay: str) -> None:
    """KubeRay's pods have no scale, so that only a whole minAvailable counts."""
    documents = build(overlay)
    budgets = {d["metadata"]["name"]: d["spec"] for d in of_kind(documents, "PodDisruptionBudget")}
    for spec in budgets.values():
        assert set(spec) == {"minAvailable", "selector"}
        assert isinstance(spec["minAvailable"], int)
    job = groups_by_role(one(documents, "RayJob"))
    assert budgets["rayward-train"]["minAvailable"] == 1 + sum(
        group["replicas"] for group in job.values()
    )


def test_an_ingress_speaks_tls_and_knows_the_services_name() -> None:
    ingress = one(build("dev-cpu", OPTIONAL), "Ingress")["spec"]
    (tls,), (rule,) = ingress["tls"], ingress["rules"]
    assert tls["hosts"] == [rule["host"]]
    name = one(build("dev-cpu"), "RayService")["metadata"]["name"]
    for path in rule["http"]["paths"]:
        assert path["backend"]["service"] == {"name": f"{name}-serve-svc", "port": {"number": 8000}}


def test_everything_of_a_run_waits_in_the_queue_together(overlay: str) -> None:
    documents = build(overlay, OPTIONAL)
    name = one(documents, "LocalQueue")["metadata"]["name"]
    # Kueue puts whatever names no queue into one that is called so: the service's clusters too.
    assert name != "default"
    flavors = one(documents, "ClusterQueue")["spec"]["resourceGroups"][0]["flavors"]
    quota = {each["name"]: str(each["nominalQuota"]) for each in flavors[0]["resources"]}
    for kind in ("RayJob", "RayCluster"):
        document = one(documents, kind)
        assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == name
        wanted = asked(document)
        assert set(wanted) == set(quota)
        assert wanted["cpu"] <= cores(quota["cpu"])
        assert wanted["memory"] <= gib(quota["memory"])
        assert wanted["nvidia.com/gpu"] <= int(quota["nvidia.com/gpu"])
        # Nobody adds pods later.
        assert "enableInTreeAutoscaling" not in cluster_of(document)
        pods = {role: group["replicas"] for role, group in groups_by_role(document).items()}
        assert pods == {
            role: group["replicas"]
            for role, group in groups_by_role(one(documents, "RayJob")).items()
        }
        assert sum(pods.values()) >= 1
