"""Room for all roles at once; colocated roles share a bundle."""

import pytest
import ray
from ray.util import placement_group_table

from rayward.cluster.config.roles import Resources
from rayward.cluster.errors import InputError
from rayward.cluster.ray_runtime.placement import (
    Placement,
    RoleRequest,
    missing_resources,
    total_cpus,
)
from tests.small_actors import Where


def bundles(placement: Placement) -> list[dict[str, float]]:
    return list(placement_group_table(placement._group)["bundles"].values())


REQUESTS = [
    RoleRequest("policy", 2, Resources(cpus=1.0)),
    RoleRequest("critic", 1, Resources(cpus=0.5)),
    RoleRequest("rollout", 1, Resources(cpus=0.25)),
]


def test_every_process_has_a_bundle_of_its_own_unless_it_is_colocated(ray_session: None) -> None:
    apart = Placement(REQUESTS, [])
    assert sorted(bundle["CPU"] for bundle in bundles(apart)) == [0.25, 0.5, 1.0, 1.0]
    apart.release()
    together = Placement(REQUESTS, [["policy", "rollout"]])
    assert sorted(bundle["CPU"] for bundle in bundles(together)) == [0.5, 2.25]
    actors = together.start("policy", Where, [{"name": "a"}, {"name": "b"}], {})
    answers = ray.get([actor.answer.remote() for actor in actors])
    assert [name for name, _ in answers] == ["a", "b"]
    assert {group for _, group in answers} == {together._group.id.hex()}
    together.release()


def test_roles_that_share_a_bundle_must_want_the_same_node(ray_session: None) -> None:
    requests = [
        RoleRequest("policy", 1, Resources(labels={"accelerator": "a"})),
        RoleRequest("critic", 1, Resources(labels={"accelerator": "b"})),
    ]
    with pytest.raises(InputError, match=r"ppo\.colocate.*same resources\.labels"):
        Placement(requests, [["policy", "critic"]])


def test_what_is_missing_is_named() -> None:
    requests = [
        RoleRequest("policy", 2, Resources(gpus=1.0)),
        RoleRequest("rollout", 1, Resources(gpus=0.5, custom={"fast": 1.0})),
    ]
    assert missing_resources(requests, {"CPU": 8.0, "GPU": 4.0, "fast": 1.0}) == {}
    assert missing_resources(requests, {"CPU": 8.0, "GPU": 2.0}) == {"GPU": 2.5, "fast": 1.0}
    assert total_cpus(requests) == 3.0
