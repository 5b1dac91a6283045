"""Who starts from whom, in one round and in several."""

from typing import Any

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.records.plan import START, make_plan, measured_policies, parent_of, yardsticks

WHOLE = [
    "sft",
    "safety_sft",
    "reward_safety",
    "reward_helpfulness",
    "rejection_sampling",
    "ppo",
    "red_teaming",
    "context_distillation",
]


def a_recipe(stages: list[str], **more: object) -> Recipe:
    document: dict[str, Any] = {
        "name": "a",
        "data": {"tiny_world": {}},
        "model": {"make": {}},
        "stages": stages,
    }
    return parse_recipe(document | more)


def test_one_round() -> None:
    plan = make_plan(a_recipe(WHOLE))
    assert [stage.id for stage in plan] == WHOLE
    assert [stage.policy for stage in plan] == [
        START,
        "sft",
        "safety_sft",
        "safety_sft",
        "safety_sft",
        "rejection_sampling",
        "ppo",
        "ppo",
    ]
    last = plan[-1]
    assert last.reward_models == {"safety": "reward_safety", "helpfulness": "reward_helpfulness"}
    assert last.gathered == ("red_teaming",)
    assert plan[4].gathered == ()


def test_a_new_round_starts_from_the_base_with_what_was_gathered() -> None:
    plan = {stage.id: stage for stage in make_plan(a_recipe(WHOLE, rounds=2))}
    assert list(plan) == [*WHOLE[:-1], *(f"{name}-2" for name in WHOLE[:-1]), WHOLE[-1]]
    assert plan["sft-2"].policy == START
    assert plan["sft-2"].gathered == ("rejection_sampling",)
    assert plan["rejection_sampling-2"].gathered == ("rejection_sampling", "red_teaming")
    assert plan["ppo-2"].gathered == ("red_teaming",)
    assert plan["reward_safety-2"].gathered == ()
    assert plan["context_distillation"].gathered == ("red_teaming", "red_teaming-2")
    assert plan["ppo-2"].policy == "rejection_sampling-2"
    assert plan["ppo-2"].reward_models["safety"] == "reward_safety-2"
    # Distillation comes once, from the last policy.
    assert plan["context_distillation"].policy == "ppo-2"
    assert plan["context_distillation"].round == 2


def test_policies_are_measured_by_the_first_rounds_models() -> None:
    recipe = a_recipe(WHOLE, rounds=2)
    assert yardsticks(recipe) == {"safety": "reward_safety", "helpfulness": "reward_helpfulness"}
    measured = measured_policies(recipe)
    assert measured[0] == "sft"
    assert measured[-1] == "context_distillation"
    assert len(measured) == 9
    assert parent_of(recipe, "ppo") == "rejection_sampling"
    # The start of a recipe with SFT is a base model, which nobody measures.
    assert parent_of(recipe, "sft") is None
    assert parent_of(recipe, "sft-2") is None


def test_a_stage_alone_starts_from_the_given_model() -> None:
    roles = {"safety": {"path": "s"}, "helpfulness": {"path": "h"}}
    model = {"path": "org/model"}
    recipe = a_recipe(["context_distillation"], ppo=roles, model=model)
    (stage,) = make_plan(recipe)
    assert stage.policy == START
    assert stage.reward_models == {}
    assert measured_policies(recipe) == [START, "context_distillation"]
    assert parent_of(recipe, "context_distillation") == START
    alone = a_recipe(["evaluation"], model=model)
    assert measured_policies(alone) == [START]
    assert parent_of(alone, START) is None
    # There is no policy in reward models, and nobody asks a model that was just made.
    assert measured_policies(a_recipe(["reward_safety"], model=model)) == []
    assert measured_policies(a_recipe(["evaluation"])) == []
