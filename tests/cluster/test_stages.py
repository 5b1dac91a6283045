"""A stage is one class that is announced: configuration and the plan go by what it declares."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

import pytest
from pydantic import Field

from rayward.cluster import stages
from rayward.cluster.config.base import Settings
from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.recipe import Recipe, recipe_type
from rayward.cluster.errors import InputError
from rayward.cluster.records.plan import PlannedStage, make_plan, measured_policies
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.inputs import name_artifacts
from rayward.pipelines.stage import Stage, stage_of, stages_of


class PolishSettings(Settings):
    """Of a stage that somebody adds."""

    strength: int = Field(default=1, ge=1)


class PolishStage(Stage):
    """Somebody's own."""

    name = "polish"
    label = "polish"
    Settings = PolishSettings
    makes = "policy"
    reads = ("prompts/train",)
    needs = ("safety",)
    gathers = ("red_teaming",)

    def check_recipe(self, recipe: Recipe) -> None:
        if recipe.rounds > 3:
            raise InputError("rounds", recipe.rounds, "at most 3 with polish")

    def run(self, context: RunContext, planned: PlannedStage) -> None:
        raise AssertionError("it is only planned here")


def announced(*others: tuple[str, str]) -> Any:  # noqa: ANN401 (stands for a library's function)
    own = [EntryPoint(name, value, "rayward.stages") for name, value in others]

    def found(*, group: str) -> EntryPoints:
        assert group == "rayward.stages"
        return EntryPoints([*entry_points(group=group), *own])

    return found


@pytest.fixture
def polish(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stage is installed."""
    monkeypatch.setattr(stages, "entry_points", announced(("polish", f"{__name__}:PolishStage")))
    stages.declared_stages.cache_clear()
    recipe_type.cache_clear()
    yield
    monkeypatch.undo()
    stages.declared_stages.cache_clear()
    recipe_type.cache_clear()


def document(**changes: object) -> dict[str, Any]:
    return {
        "name": "t",
        "data": {"path": "d"},
        "model": {"path": "m"},
        "stages": ["sft", "reward_safety", "red_teaming", "polish"],
        **changes,
    }


def test_the_paper_s_stages_are_there() -> None:
    makes = {name: one.makes for name, one in stages.declared_stages().items()}
    assert makes == {
        "sft": "policy",
        "safety_sft": "policy",
        "reward_safety": "reward_model",
        "reward_helpfulness": "reward_model",
        "rejection_sampling": "policy",
        "ppo": "policy",
        "red_teaming": "prompts",
        "context_distillation": "policy",
        "evaluation": "measurements",
    }
    for name in makes:
        # Its section of a recipe has the settings that it declares.
        field = Recipe.model_fields[name]
        assert field.annotation is stages.declared_stages()[name].Settings
    assert recipe_type() is Recipe


def test_a_stage_of_somebody_s_own_has_a_section(polish: None) -> None:
    recipe = parse_recipe(document(polish={"strength": 3}))
    assert isinstance(recipe, Recipe)
    settings = stage_of("polish").settings(recipe)
    assert isinstance(settings, PolishSettings)
    assert settings.strength == 3
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    assert "polish" in recipe_type().model_json_schema()["properties"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"polish": {"strength": 0}}, "polish.strength"),
        ({"polish": {"strong": 1}}, "polish.strong"),
        ({"polisch": {}}, "polisch"),
        ({"stages": ["sft", "polisch"]}, "stages.1"),
        ({"rounds": 4}, "rounds"),
    ],
)
def test_what_is_wrong_with_it_is_named(polish: None, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(document(**changes))
    assert caught.value.field == field
    if field == "stages.1":
        assert caught.value.expected.startswith("'sft', 'safety_sft', 'reward_safety'")
        assert caught.value.expected.endswith("'evaluation' or 'polish'")


def test_the_plan_goes_by_what_it_declares(polish: None) -> None:
    recipe = parse_recipe(document(rounds=2))
    plan = {one.id: one for one in make_plan(recipe)}
    assert list(plan) == [f"{name}{round_}" for round_ in ("", "-2") for name in recipe.stages]
    first, second = plan["polish"], plan["polish-2"]
    assert (first.policy, dict(first.reward_models)) == ("sft", {"safety": "reward_safety"})
    assert second.gathered == ("red_teaming", "red_teaming-2")
    assert measured_policies(recipe) == ["sft", "polish", "sft-2", "polish-2"]
    assert [stage.name for stage in stages_of(recipe)] == recipe.stages


def test_its_name_hangs_on_what_it_declares(polish: None) -> None:
    digests = {"prompts/train.parquet": "a", "demonstrations/train.parquet": "b"}

    def name(changed: dict[str, str], **changes: object) -> str:
        recipe = parse_recipe(document(**changes))
        return name_artifacts(recipe, digests | changed, 100)["polish"].name

    same = name({})
    assert name({"benchmarks/truthfulqa.parquet": "c"}) == same  # it does not read these
    assert name({"prompts/train.parquet": "c"}) != same
    assert name({}, polish={"strength": 2}) != same
    assert name({}, ppo={"safety": {"path": "another"}}) != same  # the reward model that it asks


def test_two_stages_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stages.declared_stages.cache_clear()
    twice = ("polish", f"{__name__}:PolishStage")
    monkeypatch.setattr(stages, "entry_points", announced(twice, twice))
    with pytest.raises(RuntimeError, match="two stages are called polish"):
        stages.declared_stages()
    monkeypatch.undo()
    assert "sft" in stages.declared_stages()


def test_a_recipe_without_a_reward_model_that_it_needs(polish: None) -> None:
    with pytest.raises(InputError, match=r"ppo\.safety\.path: .* reward_safety is not among"):
        parse_recipe(document(stages=["sft", "polish"]))
