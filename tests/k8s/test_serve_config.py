"""What the RayService gives to Serve, key by key, and what Rayward makes of it."""

from pathlib import Path

import pytest
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from tests.manifests import (
    RAY_KINDS,
    Document,
    build,
    find_out,
    groups_by_role,
    one,
    ray_pods,
    recipe_of_job,
    serve_config,
    serving,
)


def unknown_keys(model: type[BaseModel], value: object, place: str = "") -> list[str]:
    """The keys of a document that a pydantic model would drop without a word, at any depth."""
    if not isinstance(value, dict):
        return []
    found = []
    for key, inner in value.items():
        if key not in model.model_fields:
            found.append(f"{place}{key}")
            continue
        for part in models_in(model.model_fields[key].annotation):
            for item in inner if isinstance(inner, list) else [inner]:
                found += unknown_keys(part, item, f"{place}{key}.")
    return found


def models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = getattr(annotation, "__args__", ())
    return [model for part in inner for model in models_in(part)]


def test_serve_knows_every_key_of_its_configuration(overlay: str) -> None:
    config = serve_config(build(overlay))
    assert unknown_keys(ServeDeploySchema, config) == []
    schema = ServeDeploySchema.model_validate(config)
    assert schema.applications[0].import_path == "rayward.services.gateway.app:build"
    assert {one.name for one in schema.applications[0].deployments} <= {
        "gateway", "safety", "helpfulness", "policy",
    }  # fmt: skip


@pytest.mark.parametrize(
    "place",
    ["prt", "http_options.prt", "applications.prt", "applications.deployments.prt",
     "applications.deployments.ray_actor_options.prt"],
)  # fmt: skip
def test_a_key_that_serve_would_drop_is_found(place: str) -> None:
    config = serve_config(build("gpu"))
    config["applications"][0]["deployments"][0]["ray_actor_options"] = {"num_cpus": 1}
    *steps, key = place.split(".")
    where = config
    for step in steps:
        where = where[step][0] if isinstance(where[step], list) else where[step]
    where[key] = 1
    assert unknown_keys(ServeDeploySchema, config) == [place]


def test_what_is_served_is_a_serving_document(overlay: str) -> None:
    documents = build(overlay)
    settings, config = serving(documents), serve_config(documents)
    assert settings.http.host == config["http_options"]["host"] == "0.0.0.0"
    assert settings.http.port == config["http_options"]["port"] == 8000
    # The gateway has its own time-outs; Serve's comes after them.
    assert config["http_options"]["request_timeout_s"] > settings.http.generation_timeout_s
    assert settings.keys.path == "keys/keys.json"
    assert settings.reward is not None
    assert settings.policy is not None
    assert settings.jobs
    assert settings.reward.safety is not None
    assert settings.reward.helpfulness is not None
    run = find_out(one(documents, "RayJob")["spec"]["entrypoint"])
    for path, stage in (
        (settings.reward.safety.path, "reward_safety"),
        (settings.reward.helpfulness.path, "reward_helpfulness"),
        (settings.policy.path, recipe_of_job(documents, overlay).stages[-1]),
    ):
        assert path == f"{run}/models/{stage}"
    assert settings.reward.policy == settings.policy.path
    assert settings.jobs.runs_root == str(Path(run).parent) == "runs"


def test_gpu_services_have_two_of_everything_on_different_nodes() -> None:
    for overlay in ("gpu", "gpu-large"):
        config, settings = serve_config(build(overlay)), serving(build(overlay))
        apart = {
            each["name"]: each["max_replicas_per_node"]
            for each in config["applications"][0]["deployments"]
        }
        assert apart == {"gateway": 1, "safety": 1, "helpfulness": 1, "policy": 1}
        gateway = config["applications"][0]["deployments"][0]
        assert gateway["num_replicas"] == 2
        # Both in the pods of one group, which are on different machines; it asks for no CPU.
        options = gateway["ray_actor_options"]
        assert options == {"num_cpus": 0, "label_selector": {"role": "serve-reward"}}
        group = groups_by_role(one(build(overlay), "RayService"))["serve-reward"]
        assert group["template"]["spec"]["topologySpreadConstraints"]
        assert group["minReplicas"] == 2
        assert settings.policy is not None
        assert settings.policy.replicas == 2
        assert settings.reward is not None
        for model in (settings.reward.safety, settings.reward.helpfulness):
            assert model is not None
            assert model.replicas == 2


def test_serve_runs_as_rayward_serve_runs_it(documents: tuple[Document, ...]) -> None:
    for kind in RAY_KINDS:
        for pod in ray_pods(one(documents, kind)):
            environment = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
            assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
            assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
            assert environment["RAY_AUTH_MODE"] == "token"
