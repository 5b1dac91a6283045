"""The overlays' topologies, and the worker groups that kustomize builds beside them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from rayward.cluster.config.load import load_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.shipped import find_recipe, shipped_recipes
from rayward.k8s.machines import load_machines
from rayward.k8s.memory import BYTES
from rayward.k8s.packing import place, plan_nodes
from rayward.k8s.render import serving_moment
from rayward.k8s.shapes import LLAMA_2
from rayward.k8s.sizing import GIB, GPU_MEMORY_GIB, default_recipe, size
from rayward.pipelines.run.capacity import Moment, moments
from tests.manifests import (
    K8S,
    OVERLAYS,
    Document,
    build,
    groups_by_role,
    machines_of,
    nightly_recipe,
    one,
    recipe_of_job,
    serving,
)

GPU_OVERLAYS = [name for name in OVERLAYS if name != "dev-cpu"]
MODEL = {"gpu": "7B", "gpu-large": "70B"}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def topology(overlay: str) -> Path:
    return K8S / "overlays" / overlay / "topology.yaml"


def assert_fits(asked: Sequence[Moment], document: Document) -> None:
    """All of it, on as many nodes as the groups may have; and on those that they begin with."""
    machines, groups = machines_of(document), groups_by_role(document)
    counts = plan_nodes(asked, machines)
    for role, count in counts.items():
        assert count <= groups[role]["replicas"], role
    begun = {role: group["replicas"] for role, group in groups.items()}
    for moment in asked:
        assert place(moment.gangs, machines, begun).left is None, moment.name


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_groups_of_the_job_hold_every_shipped_recipe(overlay: str, name: str) -> None:
    recipe = load_recipe(shipped_recipes()[name], None, [topology(overlay)])
    assert_fits(moments(recipe), one(build(overlay), "RayJob"))


def test_the_groups_of_the_job_hold_its_own_recipe(overlay: str) -> None:
    recipe = recipe_of_job(build(overlay), overlay)
    assert_fits(moments(recipe), one(build(overlay), "RayJob"))


def test_the_groups_of_the_night_hold_its_measurement(overlay: str) -> None:
    recipe = nightly_recipe(build(overlay), overlay)
    assert_fits(moments(recipe), one(build(overlay), "RayCronJob"))


def test_the_groups_of_the_service_hold_its_replicas(overlay: str) -> None:
    settings = serving(build(overlay))
    assert_fits([serving_moment(settings)], one(build(overlay), "RayService"))


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_machines_beside_a_topology_hold_it(overlay: str, name: str) -> None:
    recipe = load_recipe(shipped_recipes()[name], None, [topology(overlay)])
    counts = plan_nodes(
        moments(recipe), load_machines(topology(overlay).with_name("machines.yaml"))
    )
    assert (
        counts
        == {
            "dev-cpu": {"cpu": 1},
            "gpu": {"learner": 2, "rollout": 1, "reward": 1},
            "gpu-large": {"learner": 4, "rollout": 4, "reward": 1},
        }[overlay]
    )


def test_a_topology_says_where_every_role_goes(overlay: str) -> None:
    """Whichever stages a recipe has: a role without labels would go anywhere."""
    recipe = recipe_of_all_stages(overlay)
    for moment in moments(recipe):
        for request in moment.requests:
            assert request.resources.labels.keys() == {"role"}, (moment.name, request.name)


def recipe_of_all_stages(overlay: str) -> Recipe:
    demo = find_recipe("demo")
    return load_recipe(demo, ["rounds=2"], [topology(overlay)])


def test_a_topology_changes_nothing_but_machines(overlay: str) -> None:
    """How it learns is the recipe's own; only precision and how ranks share the work are not."""
    plain, laid = load_recipe(find_recipe("demo")), recipe_of_all_stages(overlay)
    assert laid.ppo.policy.optimizer == plain.ppo.policy.optimizer
    for name in ("batch_size", "steps", "kl", "mix", "sampling", "early_stop"):
        assert getattr(laid.ppo, name) == getattr(plain.ppo, name)
    assert (laid.stages, laid.data, laid.model) == (plain.stages, plain.data, plain.model)
    for stage in ("sft", "safety_sft", "reward_safety", "reward_helpfulness"):
        for name in ("epochs", "batch_size", "max_tokens", "optimizer"):
            assert getattr(getattr(laid, stage), name) == getattr(getattr(plain, stage), name)


@pytest.mark.parametrize("overlay", GPU_OVERLAYS)
def test_the_gpus_hold_the_models(overlay: str) -> None:
    shape = LLAMA_2[MODEL[overlay]]
    recipe = default_recipe(shape)
    assert recipe.ppo.rollout == recipe_of_all_stages(overlay).ppo.rollout
    found = size(recipe, shape, GPU_MEMORY_GIB[overlay])
    assert all(one_.fits for one_ in found.roles)
    # Every rank loads the whole model into its node's memory before it goes to the GPU.
    learner, *_ = load_machines(topology(overlay).with_name("machines.yaml"))
    assert learner.role == "learner"
    loaded = 8 * BYTES["bfloat16"] * shape.parameters
    assert loaded <= learner.memory_gib * GIB


@pytest.mark.parametrize("overlay", GPU_OVERLAYS)
def test_ranks_have_gpus_of_their_own(overlay: str) -> None:
    """NCCL refuses two ranks on one GPU."""
    recipe = recipe_of_all_stages(overlay)
    for role in (recipe.ppo.policy, recipe.ppo.critic, recipe.sft, recipe.reward_safety):
        assert (role.resources.gpus, role.deepspeed.zero_stage) == (1, 3)
        assert role.precision == "bfloat16"
    rollout = recipe.ppo.rollout
    assert rollout.resources.gpus == rollout.tensor_parallel_size
    assert rollout.weight_sync.backend == "nccl"
