"""What the PPO stage hands to its roles and its loop: who starts from whom, and who is asked."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from rayward.actors.models.loading import load_scalar_model, load_tokenizer, save_model
from rayward.actors.roles import ModelPaths
from rayward.cluster.config.load import parse_recipe
from rayward.cluster.errors import RunStopped
from rayward.cluster.records.plan import make_plan
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import MetricsWriter
from rayward.pipelines.ppo.train import model_paths, run_ppo
from rayward.pipelines.run.context import RunContext, open_context
from rayward.pipelines.run.data import load_data
from rayward.pipelines.run.encoding import EncodedPrompt
from tests.tiny import write_tiny_classifier, write_tiny_llama

MEASURED = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A policy, two reward models that read its tokens, and one that reads others."""
    root = tmp_path_factory.mktemp("models")
    policy = str(write_tiny_llama(root / "policy"))
    for seed, name in enumerate(("safety", "helpfulness")):
        model = load_scalar_model(policy, "float32", seed)
        save_model(model, load_tokenizer(policy), root / name)
    write_tiny_classifier(root / "stranger")
    return {name: str(root / name) for name in ("policy", "safety", "helpfulness", "stranger")}


@pytest.fixture(scope="module")
def context(
    models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunContext]:
    recipe = parse_recipe(
        {
            "name": "test",
            "data": {
                "tiny_world": {
                    "demonstrations": 42,
                    "train_prompts": 42,
                    "safety_pairs": 8,
                    "helpfulness_pairs": 8,
                    "held_out_adversarial": 21,
                    "held_out_benign": 10,
                    "held_out_borderline": 4,
                    "held_out_pairs": 4,
                    "validation_adversarial": 21,
                    "validation_benign": 8,
                }
            },
            "model": {"path": models["policy"]},
            "stages": ["ppo"],
            "ppo": {
                "sampling": {"max_prompt_tokens": 300, "max_response_tokens": 16},
                "safety": {"path": models["safety"]},
                "helpfulness": {"path": models["helpfulness"]},
                "early_stop": {"prompts": MEASURED},
            },
        }
    )
    with RunDirectory.create(tmp_path_factory.mktemp("run"), recipe) as run:
        data = load_data(recipe, run)
        with (
            MetricsWriter(run.metrics_path, run.tensorboard_dir) as metrics,
            open_context(run, data, metrics, threading.Event()) as context,
        ):
            yield context


def paths(context: RunContext, **ppo: object) -> ModelPaths:
    """With other settings of the stage."""
    document = context.recipe.model_dump(mode="json")
    for name, value in ppo.items():
        document["ppo"][name] = value
    recipe = parse_recipe(document)
    (stage,) = make_plan(recipe)
    return model_paths(replace(context, recipe=recipe), stage)


def test_the_critic_starts_from_the_helpfulness_model_and_the_reference_from_the_policy(
    context: RunContext, models: dict[str, str]
) -> None:
    assert paths(context) == ModelPaths(
        policy=models["policy"],
        critic=models["helpfulness"],
        reference=models["policy"],
        safety=models["safety"],
        helpfulness=models["helpfulness"],
    )


def test_the_critic_starts_from_elsewhere_where_that_is_said_or_cannot_be_helped(
    context: RunContext, models: dict[str, str]
) -> None:
    assert paths(context, critic={"path": models["safety"]}).critic == models["safety"]
    # It would read the policy's ids as other tokens.
    assert paths(context, helpfulness={"path": models["stranger"]}).critic == models["policy"]
    assert paths(context, advantage_estimator="rloo").critic is None


class Roles:
    """Stands for all roles, which are not needed to see what they are asked to be."""

    def __init__(self, *given: object) -> None:
        self.released = False

    def release(self) -> None:
        self.released = True


class Loop:
    """Stands for the loop, and keeps what it was given."""

    given: dict[str, Any]

    def __init__(
        self,
        name: str,
        settings: object,
        roles: Roles,
        tokenizer: object,
        prompts: list[EncodedPrompt],
        validation: list[EncodedPrompt],
        *_: object,
    ) -> None:
        Loop.given = {"roles": roles, "prompts": prompts, "validation": validation}

    def train(self) -> None:
        raise RunStopped("stopped")


def test_it_trains_on_training_prompts_and_measures_validation_prompts(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[run_ppo.__module__]
    monkeypatch.setattr(module, "Roles", Roles)
    monkeypatch.setattr(module, "PPO", Loop)
    (stage,) = make_plan(context.recipe)
    with pytest.raises(RunStopped):
        run_ppo(context, stage)
    assert Loop.given["roles"].released
    trained, measured = (
        [one.prompt for one in Loop.given[name]] for name in ("prompts", "validation")
    )
    assert trained == context.data.prompts
    assert len(measured) == MEASURED
    assert {one.id for one in measured} <= {one.id for one in context.data.validation_prompts}
    assert not {one.id for one in measured} & {one.id for one in trained}
    # Of both kinds alike, though there are more adversarial ones.
    assert sum(one.adversarial for one in measured) == MEASURED / 2
