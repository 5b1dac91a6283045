"""Worker groups that everything fits on, placed as Ray's scheduler places it."""

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayward.cluster.config.roles import Resources
from rayward.cluster.errors import InputError
from rayward.cluster.ray_runtime.placement import Bundle, RoleRequest, make_bundles
from rayward.k8s.machines import Machine, load_machines, uniform_machines
from rayward.k8s.packing import place, plan_nodes
from rayward.pipelines.run.capacity import Gang, Moment

ROLES = ("policy", "critic", "reference", "safety")


def machine(role: str = "cpu", cpus: int = 4, gpus: int = 0, **others: object) -> Machine:
    return Machine.model_validate(
        {"role": role, "cpus": cpus, "memory_gib": 1, "gpus": gpus, **others}
    )


def asks(name: str, processes: int, **resources: object) -> RoleRequest:
    return RoleRequest(name, processes, Resources.model_validate(resources))


def moment(*requests: RoleRequest, colocate: tuple[tuple[str, ...], ...] = ()) -> Moment:
    return Moment("ppo", [Gang(requests, colocate)])


def refused(moments: list[Moment], machines: list[Machine]) -> InputError:
    with pytest.raises(InputError) as caught:
        plan_nodes(moments, machines)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_bundle_is_never_split() -> None:
    """Three of 3 CPUs are 9 of 12, and need a node of 4 each all the same."""
    assert plan_nodes([moment(asks("policy", 3, cpus=3.0))], [machine()]) == {"cpu": 3}
    assert plan_nodes([moment(asks("policy", 3, cpus=2.0))], [machine()]) == {"cpu": 2}
    # The large ones first, the small ones where room is left.
    mixed = moment(asks("safety", 4, cpus=1.0), asks("policy", 2, cpus=3.0))
    assert plan_nodes([mixed], [machine()]) == {"cpu": 3}


def test_colocated_roles_are_one_bundle() -> None:
    roles = asks("policy", 2, cpus=1.0), asks("critic", 2, cpus=1.0), asks("safety", 1, cpus=1.0)
    assert plan_nodes([moment(*roles)], [machine()]) == {"cpu": 2}
    together = moment(*roles, colocate=(("policy", "critic", "safety"),))
    error = refused([together], [machine()])
    assert error.field == "ppo: policy + critic + safety: resources"
    assert error.value == {"CPU": 5.0}
    assert plan_nodes([together], [machine(cpus=5)]) == {"cpu": 1}
    apart = moment(
        asks("policy", 1, labels={"role": "a"}), asks("critic", 1), colocate=(("policy", "critic"),)
    )
    assert refused([apart], [machine()]).field == "ppo.colocate"


def test_the_widest_moment_counts_for_each_group() -> None:
    learner, reward = {"role": "learner"}, {"role": "reward"}
    moments = [
        moment(asks("policy", 3, cpus=4.0, labels=learner)),
        moment(
            asks("policy", 1, cpus=4.0, labels=learner), asks("safety", 2, cpus=4.0, labels=reward)
        ),
    ]
    machines = [machine("learner"), machine("reward"), machine("idle")]
    assert plan_nodes(moments, machines) == {"learner": 3, "reward": 2}


def test_gpus_are_whole_or_shared_one_by_one() -> None:
    """Three halves need two GPUs; three of 0.6 need three, though two have 1.8."""
    node = machine(gpus=2, cpus=64)
    assert plan_nodes([moment(asks("safety", 3, gpus=0.5))], [node]) == {"cpu": 1}
    assert plan_nodes([moment(asks("safety", 3, gpus=0.6))], [node]) == {"cpu": 2}
    # A half on one of two GPUs leaves no two whole ones.
    halves = moment(asks("safety", 1, gpus=0.5), asks("policy", 1, gpus=2.0))
    assert plan_nodes([halves], [node]) == {"cpu": 2}
    error = refused([moment(asks("safety", 1, gpus=1.5))], [node])
    assert (error.field, error.value) == ("ppo: safety: resources.gpus", 1.5)


def test_large_clusters_are_planned_in_time() -> None:
    assert plan_nodes([moment(asks("policy", 120, cpus=3.0))], [machine()]) == {"cpu": 120}
    assert plan_nodes([moment(asks("policy", 120, cpus=1.0))], [machine()]) == {"cpu": 30}


def test_gangs_are_placed_one_after_another() -> None:
    """Ray gives the second gang the node with the most room left, not the fullest."""
    gangs = [
        Gang([asks("policy", 2, cpus=3.0)]),
        Gang([asks("safety", 1, cpus=1.0)]),
        Gang([asks("critic", 1, cpus=4.0)]),
    ]
    assert plan_nodes([Moment("m", gangs)], [machine()]) == {"cpu": 4}
    done = place(gangs, [machine()], {"cpu": 3})
    held = [[bundle.slots[0][0] for bundle in bundles] for _, bundles in done.nodes]
    assert done.left is not None  # the safety model sits on the third, where the critic would go
    assert done.left.slots[0][0] == "critic"
    assert sorted(held) == [["policy"], ["policy"], ["safety"]]


def test_what_fits_no_node_is_named() -> None:
    machines = [machine("a", cpus=4), machine("b", cpus=16, gpus=1)]
    on = {"role": "a"}
    error = refused([moment(asks("policy", 1, cpus=5.0, labels=on))], machines)
    assert str(error) == (
        "ppo: policy: resources: got {'CPU': 5.0}, expected no more than one node offers: "
        "a has {'CPU': 4}"
    )
    error = refused([moment(asks("policy", 1, custom={"tpu": 1.0}, labels=on))], machines)
    assert error.value == {"CPU": 1.0, "tpu": 1.0}
    error = refused([moment(asks("policy", 1, labels={"role": "c"}))], machines)
    assert (error.field, error.value) == ("ppo: policy: resources.labels", {"role": "c"})
    assert "a: {'role': 'a'}; b: {'role': 'b'}" in error.expected


def test_no_group_grows_beyond_its_limit() -> None:
    wide = moment(asks("policy", 3, cpus=4.0))
    assert plan_nodes([wide], [machine(max_nodes=3)]) == {"cpu": 3}
    error = refused([wide], [machine(max_nodes=2)])
    assert str(error) == (
        "ppo: policy: resources: got {'CPU': 4.0}, expected all of ppo to fit on the nodes that "
        "there may be: 2 of cpu"
    )
    # The next group that carries the labels takes over.
    machines = [
        machine("a", max_nodes=1, labels={"fast": "yes"}),
        machine("b", labels={"fast": "yes"}),
    ]
    wide = moment(asks("policy", 3, cpus=4.0, labels={"fast": "yes"}))
    assert plan_nodes([wide], machines) == {"a": 1, "b": 2}


def test_roles_without_labels_share_one_group() -> None:
    """Ray may put them anywhere, so that only one kind of node may be there."""
    wide = [moment(asks("policy", 1, cpus=4.0), asks("safety", 2, gpus=1.0))]
    machines = [machine("cpu"), machine("gpu", gpus=1, cpus=8), machine("large", gpus=8, cpus=64)]
    assert plan_nodes(wide, machines) == {"gpu": 2}
    assert refused(wide, machines[:1]).field == "ppo: safety: resources"
    mixed = [moment(asks("policy", 1, labels={"role": "cpu"}), asks("safety", 1))]
    error = refused(mixed, machines)
    assert (error.field, error.value) == ("ppo: safety: resources.labels", {})


def test_label_selectors_are_those_of_ray() -> None:
    node = machine("learner", labels={"zone": "a"})
    for selector in ({}, {"role": "learner"}, {"zone": "in(a, b)"}, {"zone": "!b"}, {"x": "!y"}):
        assert node.carries(selector), selector
    for selector in ({"role": "cpu"}, {"zone": "in(b)"}, {"zone": "!in(a,b)"}, {"x": "y"}):
        assert not node.carries(selector), selector


def test_equal_nodes_for_every_set_of_labels() -> None:
    asked = [("a", {}), ("b", {"role": "learner"}), ("c", {"zone": "a"}), ("d", {})]
    made = uniform_machines(asked, 8, 32, 1)
    assert [(one.role, one.all_labels) for one in made] == [
        ("cpu", {"role": "cpu"}),
        ("learner", {"role": "learner"}),
        ("a", {"role": "a", "zone": "a"}),
    ]
    assert {(one.cpus, one.memory_gib, one.gpus) for one in made} == {(8, 32, 1)}
    for selector in ({"role": "!cpu"}, {"role": "in(a, b)"}, {"role": "Not A Name"}):
        with pytest.raises(InputError, match=r"^ppo: policy: resources.labels: "):
            uniform_machines([("ppo: policy", selector)], 8, 32, 0)
    with pytest.raises(InputError, match=r"^b: resources.labels: .*expected other labels"):
        uniform_machines([("a", {"role": "a"}), ("b", {"role": "a", "zone": "b"})], 8, 32, 0)


def test_machines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "machines.yaml"
    path.write_text("groups: [{role: a, cpus: 4, memory_gib: 8, custom: {tpu: 2.0}}]\n")
    (read,) = load_machines(path)
    assert read.offers == {"CPU": 4, "tpu": 2.0}
    for text, field in (
        ("- a\n", "--machines"),
        ("groups: []\n", f"{path}: groups"),
        ("groups: [{role: a, cpus: 4}]\n", f"{path}: groups.0.memory_gib"),
        ("groups: [{role: a, cpus: 4, memory_gib: 8, cpu: 3}]\n", f"{path}: groups.0.cpu"),
        ("groups: [{role: A, cpus: 4, memory_gib: 8}]\n", f"{path}: groups.0.role"),
        ("groups: [&a {role: a, cpus: 4, memory_gib: 8}, *a]\n", f"{path}: groups"),
    ):
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            load_machines(path)
        assert caught.value.field == field


amounts = st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0, 5.0])
gpu_amounts = st.sampled_from([0.0, 0.0, 0.5, 0.3, 1.0, 2.0])


@st.composite
def gangs(draw: st.DrawFn) -> Gang:
    labels = {role: {"role": draw(st.sampled_from(["a", "b"]))} for role in ROLES}
    requests = [
        asks(
            role,
            draw(st.integers(1, 4)),
            cpus=draw(amounts),
            gpus=draw(gpu_amounts),
            custom=draw(st.sampled_from([{}, {}, {"tpu": 1.0}])),
            labels=labels[role],
        )
        for role in draw(st.lists(st.sampled_from(ROLES), min_size=1, unique=True))
    ]
    names = [one.name for one in requests if not one.resources.gpus]
    same = [name for name in names if labels[name] == labels[names[0]]]
    return Gang(requests, [same] if len(same) > 1 and draw(st.booleans()) else [])


moments_ = st.lists(
    st.builds(Moment, st.just("m"), st.lists(gangs(), min_size=1, max_size=3)),
    min_size=1,
    max_size=3,
)
machines_ = st.tuples(st.integers(2, 12), st.integers(0, 4), st.booleans()).map(
    lambda size: {"cpus": size[0], "gpus": size[1], "custom": {"tpu": 2.0} if size[2] else {}}
)


def bundles_of(moments: list[Moment]) -> list[Bundle]:
    return [
        bundle
        for one in moments
        for gang in one.gangs
        for bundle in make_bundles(gang.requests, gang.colocate)
    ]


def fits_alone(bundle: Bundle, machines: list[Machine]) -> bool:
    """Said once more, without the packer: on an empty node of its own role."""
    (home,) = [one for one in machines if one.role == bundle.labels["role"]]
    return all(home.offers.get(name, 0) >= want for name, want in bundle.resources.items())


@settings(max_examples=300)
@given(moments=moments_, a=machines_, b=machines_)
def test_every_plan_holds_everything_and_only_the_impossible_is_refused(
    moments: list[Moment], a: dict[str, object], b: dict[str, object]
) -> None:
    machines = [machine("a", **a), machine("b", **b)]
    if not all(fits_alone(bundle, machines) for bundle in bundles_of(moments)):
        refused(moments, machines)
        return
    counts = plan_nodes(moments, machines)
    for one in moments:
        done = place(one.gangs, machines, counts)
        assert done.left is None
        placed = [slot for _, bundles in done.nodes for bundle in bundles for slot in bundle.slots]
        assert sorted(placed) == sorted(slot for b_ in bundles_of([one]) for slot in b_.slots)
        assert len(done.nodes) == sum(counts.values())
        for node, bundles in done.nodes:
            used: defaultdict[str, float] = defaultdict(float)
            for bundle in bundles:
                assert bundle.labels == {"role": node.role}
                for name, amount in bundle.resources.items():
                    used[name] += amount
            assert all(used[name] <= node.offers.get(name, 0) + 1e-6 for name in used)
    # No group is larger than with a node for each of its bundles, at the widest moment.
    for role, count in counts.items():
        own = [sum(b_.labels["role"] == role for b_ in bundles_of([one])) for one in moments]
        assert count <= max(own)


@settings(max_examples=200)
@given(moments=moments_, a=machines_, limit=st.integers(1, 6))
def test_limits_are_kept(moments: list[Moment], a: dict[str, object], limit: int) -> None:
    free = [machine("a", **a), machine("b", **a)]
    capped = [machine("a", max_nodes=limit, **a), machine("b", max_nodes=limit, **a)]
    if not all(fits_alone(bundle, free) for bundle in bundles_of(moments)):
        return
    counts = plan_nodes(moments, free)
    if max(counts.values()) <= limit:
        assert plan_nodes(moments, capped) == counts
    else:
        refused(moments, capped)
