"""Whatever is wrong in a document is named by its place in that document."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import ValidationError

from rayward.cluster.config.base import Settings
from rayward.cluster.config.evaluation import JudgeSettings
from rayward.cluster.config.load import make_recipe, parse_recipe, parse_serving
from rayward.cluster.config.mixes import LagrangianMixSettings, WeightedSumMixSettings
from rayward.cluster.config.ppo import KLSettings, PPOSettings
from rayward.cluster.config.recipe import DataSettings, ModelSettings, Recipe
from rayward.cluster.config.serving import RewardServiceSettings, ServingSettings
from rayward.cluster.config.tiny_world import LlamaShape
from rayward.cluster.config.tracking import MLflowSettings
from rayward.cluster.errors import InputError

Document = dict[str, Any]
Kind = type[Settings]

RECIPE: Document = {"name": "t", "data": {"path": "d"}, "model": {"path": "m"}}
DOCUMENTS: tuple[tuple[Kind, Document], ...] = ((Recipe, RECIPE), (ServingSettings, {"jobs": {}}))

# What the validators of each group refuse, and the setting of the group that they name.
REFUSED: dict[Kind, list[tuple[Document, str]]] = {
    WeightedSumMixSettings: [({"safety_weight": 0.0, "helpfulness_weight": 0.0}, "safety_weight")],
    LagrangianMixSettings: [({"max_multiplier": 0.5}, "initial_multiplier")],
    JudgeSettings: [({}, "path")],
    KLSettings: [({"beta": 0.0, "adaptive": {}}, "beta")],
    PPOSettings: [
        ({"batch_size": 100, "minibatch_size": 48}, "minibatch_size"),
        ({"samples_per_prompt": 3}, "samples_per_prompt"),
        ({"advantage_estimator": "rloo", "samples_per_prompt": 1}, "samples_per_prompt"),
        ({"colocate": [["policy"], ["critic", "policy"]]}, "colocate"),
    ],
    DataSettings: [({}, "")],
    ModelSettings: [({"path": "m", "make": {}}, "")],
    LlamaShape: [({"heads": 5}, "heads")],
    MLflowSettings: [({"tracking_uri": "http://me:secret@host"}, "tracking_uri")],
    RewardServiceSettings: [({}, "safety")],
}


def refused(kind: Kind, document: Document) -> InputError:
    with pytest.raises(InputError) as caught:
        parse_recipe(document) if kind is Recipe else parse_serving(document)
    assert "more" not in caught.value.expected
    return caught.value


def kinds(annotation: object) -> list[Kind]:
    """The groups of settings that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    if get_origin(annotation) in (list, dict):
        return []
    return [kind for one in get_args(annotation) for kind in kinds(one)]


def places(kind: Kind, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Kind]]:
    """Every place of a document where a group of settings may stand."""
    yield path, kind
    for name, field in kind.model_fields.items():
        for one in kinds(field.annotation):
            yield from places(one, (*path, name))


def written(top: Kind, base: Document, path: tuple[str, ...], content: Document) -> Document:
    """A document with something at a place, and on the way there what has no default."""
    if not path:
        return {**base, **content}
    kind, below = top, {}
    document = below
    for name in path:
        below[name] = {}
        below = below[name]
        (kind, *_) = kinds(kind.model_fields[name].annotation)
        below |= {name: "x" for name, field in kind.model_fields.items() if field.is_required()}
    below |= content
    return {**base, **document}


def named(kind: Kind) -> Document:
    """What says which of several kinds is meant."""
    field = kind.model_fields.get("name")
    return {"name": field.default} if field and kind.__name__.endswith("MixSettings") else {}


PLACES = [(top, base, path, kind) for top, base in DOCUMENTS for path, kind in places(top)]


def test_a_group_says_where_it_stands() -> None:
    found = set()
    for top, base, path, kind in PLACES:
        for content, field in REFUSED.get(kind, []):
            expected = ".".join([*path, field] if field else path)
            error = refused(top, written(top, base, path, {**named(kind), **content}))
            assert error.field == expected
            found.add(expected)
    # Shared groups were met at each of their places.
    assert {"ppo.mix.safety_weight", "reward.mix.safety_weight"} <= found
    assert {"ppo.mix.initial_multiplier", "reward.mix.initial_multiplier"} <= found
    assert {"evaluation.judge.path", "reward.safety", "data", "model"} <= found


def test_no_validator_is_left_out() -> None:
    validated = {
        kind
        for *_, kind in PLACES
        if (own := kind.__pydantic_decorators__).model_validators or own.field_validators
    }
    assert validated - {Recipe, ServingSettings} == REFUSED.keys()


def test_a_group_that_is_made_in_code_names_its_own_setting() -> None:
    for kind, rows in REFUSED.items():
        for content, field in rows:
            with pytest.raises(ValidationError) as caught:
                kind.model_validate({**named(kind), **content})
            (detail,) = caught.value.errors()
            own = detail["ctx"]["error"]
            assert ".".join(map(str, [*detail["loc"], own.field])).strip(".") == field


def test_every_setting_is_named_by_its_place() -> None:
    """What no setting can be, at every setting of every document, and an unknown one beside it."""
    count = 0
    for top, base, path, kind in PLACES:
        for name in [*kind.model_fields, "nobody_knows_it"]:
            content = {**named(kind), name: object()}
            error = refused(top, written(top, base, path, content))
            assert error.field == ".".join([*path, name])
            count += 1
    assert count > 300


@pytest.mark.parametrize(
    ("top", "document", "expected"),
    [
        # The two ends of one check, in the two documents that have it.
        (
            ServingSettings,
            {
                "reward": {
                    "mix": {"name": "weighted_sum", "safety_weight": 0.0, "helpfulness_weight": 0.0}
                }
            },
            "reward.mix.safety_weight: got 0.0, expected a weight above 0 for one of the two",
        ),
        (
            Recipe,
            {
                "ppo": {
                    "mix": {"name": "weighted_sum", "safety_weight": 0.0, "helpfulness_weight": 0.0}
                }
            },
            "ppo.mix.safety_weight: got 0.0, expected a weight above 0 for one of the two",
        ),
        # Which mix it is.
        (
            ServingSettings,
            {"reward": {"mix": {"name": "linear"}}},
            "reward.mix.name: got 'linear', expected one of 'piecewise', 'weighted_sum', 'lag",
        ),
        (Recipe, {"ppo": {"mix": {"name": 3}}}, "ppo.mix.name: got 3, expected one of 'piece"),
        (Recipe, {"ppo": {"mix": {"name": None}}}, "ppo.mix.name: got None, expected one of"),
        (Recipe, {"ppo": {"mix": None}}, "ppo.mix: got None, expected a mapping of settings"),
        # A setting that is called as one of the kinds.
        (
            Recipe,
            {"ppo": {"mix": {"weighted_sum": 1, "name": "weighted_sum"}}},
            "ppo.mix.weighted_sum: got 1, expected a known setting",
        ),
        (
            Recipe,
            {"ppo": {"mix": {"piecewise": {"threshold": 0.2}}}},
            "ppo.mix.piecewise: got 'a mapping', expected a known setting",
        ),
        # Kinds that are no groups.
        (
            Recipe,
            {"context_distillation": {"fit": {"lora": {"target_modules": "q_proj"}}}},
            "context_distillation.fit.lora.target_modules: got 'q_proj', expected a valid list or "
            "'all-linear'",
        ),
        (
            Recipe,
            {"sft": {"lora": {"target_modules": ["q_proj", 1]}}},
            "sft.lora.target_modules.1: got 1, expected a valid string",
        ),
        # Places in lists, and names in mappings.
        (Recipe, {"stages": ["sft", "rm"]}, "stages.1: got 'rm', expected 'sft', "),
        (Recipe, {"ppo": {"colocate": [[], ["x"]]}}, "ppo.colocate.1.0: got 'x', expected 'policy"),
        (
            ServingSettings,
            {"policy": {"path": "p", "resources": {"labels": {"cloud.example/pool": 3}}}},
            "policy.resources.labels.cloud.example/pool: got 3, expected a valid string",
        ),
        (
            Recipe,
            {"ppo": {"rollout": {"resources": {"labels": {7: "a"}}}}},
            "ppo.rollout.resources.labels.7: got 7, expected a valid string",
        ),
        (ServingSettings, {"reward": {1: 2}}, "reward.1: got 1, expected a name in text"),
        # What the whole document is held to.
        (ServingSettings, {"jobs": None}, "reward: got None, expected something to serve"),
        (
            ServingSettings,
            {"policy": {"path": "p", "guard": {"best_of": 99}}},
            "policy.guard.best_of: got 99, expected at most max_choices, 16",
        ),
        (
            Recipe,
            {"stages": ["ppo"], "ppo": {"safety": {"path": "s"}}},
            "ppo.helpfulness.path: got None, expected a reward model",
        ),
    ],
)
def test_a_fault_is_told_in_the_words_of_its_document(
    top: Kind, document: Document, expected: str
) -> None:
    base = dict(DOCUMENTS)[top]
    assert str(refused(top, {**base, **document})).startswith(expected)


def test_several_faults_are_counted_once_each() -> None:
    lora = {"target_modules": 5, "rank": 0}
    with pytest.raises(InputError) as caught:
        parse_recipe({**RECIPE, "sft": {"lora": lora}, "seed": -1})
    assert str(caught.value) == (
        "seed: got -1, expected a number of at least 0 (2 more settings are wrong)"
    )
    # Both of what is called as the kind, and of what the kind refuses.
    with pytest.raises(InputError) as caught:
        parse_recipe(
            {**RECIPE, "ppo": {"mix": {"piecewise": {"threshold": 0.2}, "threshold": 3.0}}}
        )
    assert str(caught.value) == (
        "ppo.mix.threshold: got 3.0, expected a number less than 1.0 (1 more setting is wrong)"
    )


@pytest.mark.parametrize(
    ("kind", "called"), [(Recipe, "recipe"), (ServingSettings, "serving document")]
)
def test_a_document_that_is_none_goes_by_its_own_name(kind: Kind, called: str) -> None:
    nothing: Any = []
    assert refused(kind, nothing).field == called


def test_an_overlay_is_found_by_a_name_with_dots(tmp_path: Path) -> None:
    path = tmp_path / "topology.yaml"
    path.write_text("ppo: {policy: {resources: {labels: {cloud.example/pool: 3}}}}\n")
    with pytest.raises(InputError) as caught:
        make_recipe(dict(RECIPE), None, [path])
    assert caught.value.field == f"{path}: ppo.policy.resources.labels.cloud.example/pool"
    # What the overlay does not set is not its fault.
    path.write_text("ppo: {policy: {resources: {labels: {cloud.example: a}}}}\n")
    below: Document = {"policy": {"resources": {"labels": {"cloud.example/pool": 3}}}}
    with pytest.raises(InputError) as caught:
        make_recipe({**RECIPE, "ppo": below}, None, [path])
    assert caught.value.field == "ppo.policy.resources.labels.cloud.example/pool"


def test_an_overlay_is_found_by_what_a_group_refuses(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text("ppo: {mix: {name: lagrangian, initial_multiplier: 99.0}}\n")
    with pytest.raises(InputError) as caught:
        make_recipe(dict(RECIPE), None, [path])
    assert caught.value.field == f"{path}: ppo.mix.initial_multiplier"
