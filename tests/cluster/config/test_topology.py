"""A run that moves to other machines: what may differ when it is resumed."""

from pathlib import Path

import pytest

from rayward.cluster.config.load import make_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.topology import TOPOLOGY, flat_settings, is_topology, moved_settings
from rayward.cluster.errors import InputError
from rayward.cluster.runs.run_directory import RunDirectory


def recipe(*changes: str) -> Recipe:
    document = {"name": "t", "data": {"tiny_world": {}}, "model": {"make": {}}}
    return make_recipe(document, list(changes))


def test_topology_may_differ() -> None:
    moved = moved_settings(
        recipe("ppo.policy.resources.labels={role: learner}", "ppo.reference.replicas=3"),
        recipe(
            "ppo.policy.resources.labels={}",
            "sft.resources.cpus=4",
            "ppo.colocate=[[policy, rollout]]",
            "ppo.rollout.replicas=2",
            "ppo.rollout.weight_sync.timeout_s=9.0",
            "ppo.phase_timeout_s=60.0",
        ),
    )
    assert moved == {
        "ppo.policy.resources.labels.role": ["learner", None],
        "ppo.policy.resources.labels": [None, {}],
        "ppo.reference.replicas": [3, 1],
        "sft.resources.cpus": [1.0, 4.0],
        "ppo.colocate": [[], [["policy", "rollout"]]],
        "ppo.rollout.replicas": [1, 2],
        "ppo.rollout.weight_sync.timeout_s": [300.0, 9.0],
        "ppo.phase_timeout_s": [3600.0, 60.0],
    }
    assert moved_settings(recipe(), recipe()) == {}


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "ppo.steps=3",
        # A checkpoint of DeepSpeed's is cut into as many parts as there were ranks.
        "ppo.policy.deepspeed.ranks=2",
        "ppo.policy.deepspeed.zero_stage=3",
        "ppo.critic.precision=bfloat16",
        "ppo.rollout.tensor_parallel_size=2",
        "ppo.safety.path=elsewhere",
    ],
)
def test_what_changes_the_result_may_not(change: str) -> None:
    with pytest.raises(InputError, match=r"with which the run was started$") as caught:
        moved_settings(recipe(), recipe(change, "sft.resources.cpus=9"))
    assert caught.value.field == change.partition("=")[0]


def test_stale_rollouts_stay_with_as_many_workers() -> None:
    """Their checkpoints hold answers by the worker's share of a batch."""
    stale = "ppo.max_staleness=1"
    with pytest.raises(InputError, match=r"^ppo.rollout.replicas: got 2, expected 1, with which"):
        moved_settings(recipe(stale), recipe(stale, "ppo.rollout.replicas=2"))
    # The samplers of an attacker, and models that score, keep nothing.
    assert moved_settings(recipe(stale), recipe(stale, "ppo.safety.replicas=2"))


def test_every_name_of_topology_is_a_setting() -> None:
    """A name that nothing has any more would hide a change that counts."""
    names = {part for name in flat_settings(recipe()) for part in name.split(".")}
    assert names >= TOPOLOGY
    assert not is_topology("ppo.policy.gradient_checkpointing")


def test_a_resumed_run_is_where_it_was_moved_to(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", recipe("ppo.safety.replicas=2")).close()
    with RunDirectory.resume(tmp_path / "run", recipe("ppo.safety.replicas=1")) as run:
        assert run.recipe().ppo.safety.replicas == 1
        (resumed,) = run.manifest()["resumed"]
        assert resumed["moved"] == {"ppo.safety.replicas": [2, 1]}
    # What differs now is held against where it has been last.
    with RunDirectory.resume(tmp_path / "run", recipe()) as run:
        assert run.manifest()["resumed"][1]["moved"] == {}
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    with pytest.raises(InputError, match=r"^ppo.steps: got 9"):
        RunDirectory.resume(tmp_path / "run", recipe("ppo.steps=9", "ppo.safety.replicas=3"))
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before
