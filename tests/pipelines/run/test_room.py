"""What a recipe asks of its machines, moment by moment."""

import pytest

from rayward.cluster.config.load import load_recipe, make_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.roles import DeepSpeedSettings, Resources
from rayward.cluster.config.shipped import shipped_recipes
from rayward.cluster.config.supervised import SFTSettings
from rayward.pipelines.run.capacity import Moment, moments, required_cpus
from rayward.pipelines.supervised.fit import _scaling


def recipe(*changes: str) -> Recipe:
    document = {"name": "t", "data": {"tiny_world": {}}, "model": {"make": {}}}
    return make_recipe(document, list(changes))


def asked(moment: Moment) -> list[dict[str, int]]:
    return [{one.name: one.processes for one in gang.requests} for gang in moment.gangs]


def test_the_demo_moment_by_moment() -> None:
    session = {"rollout": 1, "safety": 1, "helpfulness": 1}
    ppo = {"policy": 1, "critic": 1, "reference": 1, "safety": 1, "helpfulness": 1, "rollout": 1}
    demo = load_recipe(shipped_recipes()["demo"])
    assert [(moment.name, asked(moment)) for moment in moments(demo)] == [
        ("sft", [{"sft": 1}]),
        ("safety_sft", [{"safety_sft": 1}]),
        ("reward_safety", [{"reward_safety": 1}]),
        ("reward_helpfulness", [{"reward_helpfulness": 1}]),
        ("rejection_sampling", [session]),
        ("rejection_sampling.fit", [{"fit": 1}]),
        ("ppo", [ppo]),
        ("red_teaming", [session]),
        ("context_distillation", [session]),
        ("context_distillation.fit", [{"fit": 1}]),
        ("evaluation", [session]),
        ("evaluation.truthfulqa", [session]),
        ("evaluation.toxigen", [session]),
    ]
    assert required_cpus(demo) == 6


def test_ranks_replicas_attackers_and_judges_count() -> None:
    found = {
        moment.name: moment
        for moment in moments(
            recipe(
                "stages=[sft, reward_safety, reward_helpfulness, ppo, red_teaming]",
                "sft.deepspeed.ranks=3",
                "ppo.advantage_estimator=rloo",
                "ppo.policy.deepspeed.ranks=2",
                "ppo.rollout.replicas=4",
                "ppo.colocate=[[policy, reference]]",
                "red_teaming.attacker={path: x, rollout: {replicas: 2}}",
                "evaluation.judge={path: j}",
                "evaluation.refusal_judge={path: r}",
                "evaluation.truthfulqa.info_judge={path: i}",
                "evaluation.toxigen=null",
            )
        )
    }
    assert asked(found["sft"]) == [{"sft": 3}]
    # No critic without GAE.
    ppo = {"policy": 2, "reference": 1, "safety": 1, "helpfulness": 1, "rollout": 4}
    assert asked(found["ppo"]) == [ppo]
    assert found["ppo"].gangs[0].colocate == [["policy", "reference"]]
    session = {"rollout": 4, "safety": 1, "helpfulness": 1}
    assert asked(found["red_teaming"]) == [session, {"attacker": 2}]
    assert asked(found["evaluation"]) == [session, {"judge": 1}, {"refusal_judge": 1}]
    assert asked(found["evaluation.truthfulqa"]) == [session, {"info_judge": 1}]
    assert asked(found["evaluation.toxigen"]) == [session]


def test_only_reward_models_that_there_are_take_room() -> None:
    alone = recipe("model.make=null", "model.path=m", "stages=[evaluation]")
    assert [asked(moment) for moment in moments(alone)] == [[{"rollout": 1}]] * 3
    brought = recipe("model.make=null", "model.path=m", "stages=[evaluation]", "ppo.safety.path=s")
    assert asked(moments(brought)[0]) == [{"rollout": 1, "safety": 1}]


def test_nothing_is_measured_where_no_policy_is_made() -> None:
    rewards = recipe("stages=[reward_safety, reward_helpfulness]", "reward_safety.resources.cpus=3")
    assert [moment.name for moment in moments(rewards)] == ["reward_safety", "reward_helpfulness"]
    # Side by side where there is room.
    assert required_cpus(rewards) == 4


@pytest.mark.parametrize("labels", [{}, {"role": "learner"}])
def test_labels_and_custom_resources_reach_ray_train(labels: dict[str, str]) -> None:
    settings = SFTSettings(
        deepspeed=DeepSpeedSettings(ranks=2),
        resources=Resources(cpus=3, gpus=0.5, custom={"disk": 1.5}, labels=labels),
    )
    scaling = _scaling(settings)
    assert scaling.num_workers == 2
    assert scaling.resources_per_worker == {"CPU": 3, "GPU": 0.5, "disk": 1.5}
    assert scaling._label_selector_per_worker(2) == ([labels] * 2 if labels else None)
