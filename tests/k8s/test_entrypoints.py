"""What the RayJob and the RayCronJob run, and whether there is room for it."""

from collections import Counter

import pytest
import yaml

from rayward.actors.roles import role_requests
from rayward.pipelines.run.capacity import moments
from tests.manifests import (
    K8S,
    OVERLAYS,
    arguments,
    build,
    capacity,
    entrypoints,
    find_out,
    gib,
    groups_by_role,
    nightly_recipe,
    one,
    recipe_of_job,
    serving,
)


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_entrypoints_are_commands_with_options_that_there_are(overlay: str) -> None:
    for entrypoint in entrypoints(build(overlay)):
        given = arguments(entrypoint)
        assert given["address"] == "auto"
        # Kubernetes and the submitter's shell read it before Rayward does.
        assert not set("$`;|&<>\"'") & set(entrypoint)


def test_an_unknown_option_is_found() -> None:
    with pytest.raises(Exception, match="--no-such"):
        arguments("rayward run demo --no-such 1")


def test_a_retried_job_goes_on_where_it_was(overlay: str) -> None:
    job = one(build(overlay), "RayJob")["spec"]
    assert arguments(job["entrypoint"])["auto_resume"] is True
    assert find_out(job["entrypoint"]).startswith("runs/")
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"] is True


def test_the_recipe_of_the_job_is_whole(overlay: str) -> None:
    recipe = recipe_of_job(build(overlay), overlay)
    assert {"reward_safety", "reward_helpfulness", "ppo"} <= set(recipe.stages)


def test_the_nightly_measurement_has_its_gate(overlay: str) -> None:
    documents = build(overlay)
    given = arguments(entrypoints(documents)[1])
    settings = serving(documents)
    assert settings.policy is not None
    assert settings.reward is not None
    assert settings.reward.safety is not None
    assert given["model"] == settings.policy.path
    assert given["out"] is None  # every night a new run directory
    recipe = nightly_recipe(documents, overlay)
    run = find_out(entrypoints(documents)[0])
    assert recipe.gates is not None
    assert recipe.gates.previous is not None
    assert recipe.gates.previous.endswith(f"{run}/models/ppo")
    assert recipe.evaluation.judge is not None
    assert recipe.evaluation.judge.path is not None
    assert recipe.evaluation.judge.path.endswith(settings.reward.safety.path)


# Room


def test_worker_groups_are_the_machines_that_the_overlay_names(overlay: str) -> None:
    machines = yaml.safe_load((K8S / "overlays" / overlay / "machines.yaml").read_text())["groups"]
    groups = groups_by_role(one(build(overlay), "RayJob"))
    assert set(groups) == {machine["role"] for machine in machines}
    for machine in machines:
        group = groups[machine["role"]]
        assert capacity(group) == {"CPU": machine["cpus"], "GPU": machine.get("gpus", 0)}
        assert group["maxReplicas"] == machine["max_nodes"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert gib(limits["memory"]) <= machine["memory_gib"]


def test_the_pods_that_a_run_starts_with_hold_its_widest_stage(overlay: str) -> None:
    groups = groups_by_role(one(build(overlay), "RayJob"))
    asked: dict[str, Counter[str]] = {role: Counter() for role in groups}
    for request in role_requests(recipe_of_job(build(overlay), overlay).ppo):
        role, one_process = request.resources.labels["role"], request.resources
        asked[role]["CPU"] += one_process.cpus * request.processes
        asked[role]["GPU"] += one_process.gpus * request.processes
        assert one_process.gpus <= capacity(groups[role])["GPU"]
    for role, wanted in asked.items():
        there = {key: n * groups[role]["replicas"] for key, n in capacity(groups[role]).items()}
        assert wanted["CPU"] <= there["CPU"], role
        assert wanted["GPU"] <= there["GPU"], role
        # GPUs that nobody asks for would stand idle for the whole run.
        assert wanted["GPU"] == there["GPU"] or role == "learner", role
        assert wanted["CPU"] or groups[role]["replicas"] == 0, role


def test_the_pods_of_the_night_hold_its_widest_moment(overlay: str) -> None:
    groups = groups_by_role(one(build(overlay), "RayCronJob"))
    found = moments(nightly_recipe(build(overlay), overlay))
    assert found
    widest: dict[str, Counter[str]] = {role: Counter() for role in groups}
    for moment in found:
        asked: dict[str, Counter[str]] = {role: Counter() for role in groups}
        for request in moment.requests:
            role, one_process = request.resources.labels["role"], request.resources
            asked[role]["CPU"] += one_process.cpus * request.processes
            asked[role]["GPU"] += one_process.gpus * request.processes
        widest = {role: widest[role] | asked[role] for role in groups}
    for role, wanted in widest.items():
        there = {key: n * groups[role]["replicas"] for key, n in capacity(groups[role]).items()}
        assert 0 < wanted["CPU"] <= there["CPU"], role
        assert wanted["GPU"] == there["GPU"], role


def test_the_pods_of_the_service_hold_its_replicas(overlay: str) -> None:
    groups, settings = groups_by_role(one(build(overlay), "RayService")), serving(build(overlay))
    assert settings.reward is not None
    asked: dict[str, Counter[str]] = {role: Counter() for role in groups}
    for model in (settings.reward.safety, settings.reward.helpfulness, settings.policy):
        assert model is not None
        role = model.resources.labels.get("role", "cpu")
        asked[role]["CPU"] += model.resources.cpus * model.replicas
        asked[role]["GPU"] += model.resources.gpus * model.replicas
    for role, wanted in asked.items():
        there = {key: n * groups[role]["replicas"] for key, n in capacity(groups[role]).items()}
        assert wanted["CPU"] <= there["CPU"]
        assert wanted["GPU"] == there["GPU"]
