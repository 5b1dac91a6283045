"""What a recipe may hold, and what a person reads when it holds something else."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import InputError

Document = dict[str, Any]


def document(**sections: object) -> Document:
    base: Document = {"name": "t", "data": {"tiny_world": {}}, "model": {"make": {}}}
    return {**base, **sections}


def message(**sections: object) -> str:
    with pytest.raises(InputError) as caught:
        parse_recipe(document(**sections))
    text = str(caught.value)
    assert "\n" not in text
    # pydantic's own sentences do not fit behind "expected".
    assert "should" not in text
    assert "instance of" not in text
    return text


def test_defaults_are_the_papers() -> None:
    """Llama 2, sections 3.4.3 and 4.2.3."""
    ppo = parse_recipe(document()).ppo
    assert (ppo.batch_size, ppo.minibatch_size, ppo.steps) == (512, 64, 200)
    assert (ppo.ratio_clip, ppo.kl.beta, ppo.mix.threshold) == (0.2, 0.01, 0.15)
    adam = ppo.policy.optimizer
    assert (adam.beta1, adam.beta2, adam.eps) == (0.9, 0.95, 1e-5)
    assert (adam.weight_decay, adam.gradient_clip, adam.learning_rate) == (0.1, 1.0, 1e-6)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        # Unknown settings, at every depth.
        (
            {"ppo": {"stepz": 3}},
            "ppo.stepz: got 3, expected a known setting; `rayward config schema` lists them",
        ),
        ({"trainer": {"a": 1}}, "trainer: got 'a mapping', expected a known setting"),
        (
            {"data": {"tiny_world": {"nope": 1}}},
            "data.tiny_world.nope: got 1, expected a known setting",
        ),
        ({"ppo": {1: 2}}, "ppo.1: got 1, expected a name in text"),
        # Wrong types: nothing is converted.
        ({"ppo": {"steps": "3"}}, "ppo.steps: got '3', expected a valid integer"),
        ({"ppo": {"steps": True}}, "ppo.steps: got True, expected a valid integer"),
        ({"sft": {"max_steps": 1.5}}, "sft.max_steps: got 1.5, expected a valid integer"),
        ({"name": 3}, "name: got 3, expected a valid string"),
        (
            {"ppo": {"rollout": {"enforce_eager": "yes"}}},
            "ppo.rollout.enforce_eager: got 'yes', expected a valid boolean",
        ),
        ({"stages": "sft"}, "stages: got 'sft', expected a valid list"),
        (
            {"ppo": {"kl": {"beta": "1e-3"}}},
            "ppo.kl.beta: got '1e-3', expected a valid number; in YAML one with an exponent has "
            "a point, as in 1.0e-3",
        ),
        # Sections that are none, also those that may be null.
        ({"ppo": None}, "ppo: got None, expected a mapping of settings"),
        ({"ppo": 3}, "ppo: got 3, expected a mapping of settings"),
        ({"ppo": {"early_stop": 3}}, "ppo.early_stop: got 3, expected a mapping of settings"),
        ({"data": []}, "data: got [], expected a mapping of settings"),
        ({"evaluation": {"judge": {"path": 3}}}, "evaluation.judge.path: got 3, expected a valid"),
        # Out of range.
        ({"ppo": {"steps": 0}}, "ppo.steps: got 0, expected a number of at least 1"),
        ({"ppo": {"gamma": 1.5}}, "ppo.gamma: got 1.5, expected a number of at most 1"),
        ({"ppo": {"gamma": 0}}, "ppo.gamma: got 0, expected a number greater than 0"),
        (
            {"ppo": {"mix": {"threshold": 1.0}}},
            "ppo.mix.threshold: got 1.0, expected a number less than 1",
        ),
        ({"ppo": {"kl": {"beta": float("inf")}}}, "ppo.kl.beta: got inf, expected a finite number"),
        ({"ppo": {"kl": {"beta": float("nan")}}}, "ppo.kl.beta: got nan, expected a finite number"),
        ({"seed": -1}, "seed: got -1, expected a number of at least 0"),
        ({"seed": 2**63}, f"seed: got {2**63}, expected a number less than {2**63}"),
        (
            {"sft": {"resources": {"custom": {"tpu": -1}}}},
            "sft.resources.custom.tpu: got -1, expected a number of at least 0",
        ),
        ({"name": "My Run"}, "name: got 'My Run', expected text that matches ^[a-z0-9]"),
        ({"name": "x" * 64}, f"name: got '{'x' * 64}', expected text that matches"),
        ({"stages": []}, "stages: got [], expected at least 1 of them"),
        # One of a few words.
        (
            {"ppo": {"mix": {"name": "linear"}}},
            "ppo.mix.name: got 'linear', expected one of 'piecewise', 'weighted_sum', 'lagrangian'",
        ),
        (
            {"ppo": {"kl": {"estimator": "k4"}}},
            "ppo.kl.estimator: got 'k4', expected 'k1', 'k2' or",
        ),
        ({"stages": ["rm"]}, "stages.0: got 'rm', expected 'sft', 'safety_sft', 'reward_"),
        (
            {"sft": {"deepspeed": {"zero_stage": 4}}},
            "sft.deepspeed.zero_stage: got 4, expected 0, 1",
        ),
        # Settings that do not go together.
        (
            {"data": {"path": "d", "tiny_world": {}}},
            "data: got 'both', expected exactly one of path and tiny_world",
        ),
        (
            {"data": {}},
            "data: got 'neither', expected exactly one of path and tiny_world",
        ),
        (
            {"model": {"path": "m", "make": {}}},
            "model: got 'both', expected exactly one of path and make",
        ),
        ({"model": {}}, "model: got 'neither', expected exactly one of path and make"),
        (
            {"model": {"make": {"heads": 5}}},
            "model.make.heads: got 5, expected as many heads as split hidden_size, "
            "which is 96, into heads of a size that vLLM runs: 32, 64, 80",
        ),
        (
            {"model": {"make": {"hidden_size": 48, "heads": 3}}},  # 48 / 3 = 16
            "model.make.heads: got 3, expected",
        ),
        (
            {"ppo": {"batch_size": 100, "minibatch_size": 48}},
            "ppo.minibatch_size: got 48, expected a divisor of batch_size, which is 100",
        ),
        # The default minibatch of 64 is too large for this batch.
        ({"ppo": {"batch_size": 8}}, "ppo.minibatch_size: got 64, expected a divisor"),
        (
            {"stages": ["ppo", "reward_safety", "reward_helpfulness"]},
            "stages: got ['ppo', 'reward_safety', 'reward_helpfulness'], expected reward_safety "
            "before ppo",
        ),
        (
            {"stages": ["sft", "sft"]},
            "stages: got ['sft', 'sft'], expected each stage at most once; repeated: sft",
        ),
        (
            {"stages": ["evaluation", "sft"]},
            "stages: got ['evaluation', 'sft'], expected evaluation after all others",
        ),
        (
            {"stages": ["sft", "red_teaming"]},
            "ppo.safety.path: got None, expected a reward model, because reward_safety is not",
        ),
        (
            {
                "stages": ["sft", "reward_safety", "reward_helpfulness", "ppo", "red_teaming"],
                "ppo": {"policy": {"lora": {"save_as": "adapter"}}},
            },
            "ppo.policy.lora.save_as: got 'adapter', expected merged, because red_teaming starts",
        ),
        (
            {"ppo": {"colocate": [["policy"], ["critic", "policy"]]}},
            "ppo.colocate: got [['policy'], ['critic', 'policy']], expected each role at most "
            "once; repeated: policy",
        ),
        ({"ppo": {"colocate": [["judge"]]}}, "ppo.colocate.0.0: got 'judge', expected 'policy',"),
        (
            {"stages": ["sft", "ppo"]},
            "ppo.safety.path: got None, expected a reward model, because reward_safety is not "
            "among the stages",
        ),
        (
            {"stages": ["reward_safety", "ppo"]},
            "ppo.helpfulness.path: got None, expected a reward model, because reward_helpfulness",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(
    sections: Document, expected: str
) -> None:
    assert message(**sections).startswith(expected)


@pytest.mark.parametrize("name", ["name", "data", "model"])
def test_a_required_setting_that_is_absent_is_named(name: str) -> None:
    given_ = document()
    del given_[name]
    with pytest.raises(InputError, match=f"^{name}: got None, expected a value; .* no default$"):
        parse_recipe(given_)


def test_several_wrong_settings_are_counted() -> None:
    two = message(ppo={"steps": 0, "gamma": 2.0})
    assert two == ("ppo.steps: got 0, expected a number of at least 1 (1 more setting is wrong)")
    assert message(seed=-1, ppo={"steps": 0, "gamma": 2.0}).endswith("(2 more settings are wrong)")
    # A check of a whole section keeps its message beside others.
    both = message(data={}, ppo={"steps": 0})
    assert both == (
        "data: got 'neither', expected exactly one of path and tiny_world (1 more setting is wrong)"
    )


@pytest.mark.parametrize(
    "sections",
    [
        {"stages": ["ppo"], "ppo": {"safety": {"path": "s"}, "helpfulness": {"path": "h"}}},
        {"stages": ["reward_safety", "ppo"], "ppo": {"helpfulness": {"path": "h"}}},
        {"stages": ["sft", "reward_helpfulness"]},
        {"ppo": {"batch_size": 8, "minibatch_size": 8}},
        {"ppo": {"early_stop": None, "kl": {"beta": 0}}},  # an integer is a number
        {"ppo": {"colocate": [["policy", "reference"], ["critic"]]}},
        {"model": {"make": {"hidden_size": 64, "heads": 2}}},
        {"seed": 2**63 - 1},
    ],
)
def test_what_fits_together_is_taken(sections: Document) -> None:
    recipe = parse_recipe(document(**sections))
    # And is what was said, not a default.
    assert _holds(recipe.model_dump(mode="json"), sections)


def _holds(dumped: object, given_: object) -> bool:
    if isinstance(given_, dict) and isinstance(dumped, dict):
        return all(_holds(dumped[name], value) for name, value in given_.items())
    return dumped == given_


def test_settings_cannot_be_changed() -> None:
    recipe = parse_recipe(document())
    for section, name in ((recipe, "seed"), (recipe.ppo, "steps"), (recipe.ppo.kl, "beta")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 7)
    assert parse_recipe(document()) == recipe


def test_no_setting_is_shared_between_roles() -> None:
    recipe = parse_recipe(document(ppo={"policy": {"optimizer": {"learning_rate": 0.5}}}))
    assert recipe.ppo.policy.optimizer.learning_rate == 0.5
    assert recipe.ppo.critic.optimizer.learning_rate == 1e-6
    assert recipe.sft.optimizer.learning_rate == 2e-5
    assert recipe.reward_safety.optimizer.learning_rate == 1e-5
    assert recipe.reward_helpfulness.own_share == 0.5
    assert recipe.reward_safety.own_share == 0.9


def groups(
    model: type[BaseModel] = Recipe, prefix: str = ""
) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every group of settings with the dotted name of where it is."""
    yield prefix, model
    for name, field in model.model_fields.items():
        for kind in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from groups(kind, f"{prefix}{name}.")


def test_every_setting_is_described_in_the_schema() -> None:
    schema = Recipe.model_json_schema()
    sections = {"Recipe": schema, **schema["$defs"]}
    assert {"PPOSettings", "Resources", "TinyWorldSizes"} <= sections.keys()
    missing = [
        f"{section}.{name}"
        for section, body in sections.items()
        for name, setting in body["properties"].items()
        # Where a setting's words are those of its group, pydantic leaves them to the group.
        if not setting.get("description") and not setting.get("$ref")
    ]
    assert missing == []
    assert [section for section, body in sections.items() if not body.get("description")] == []
    # A description says something that the name does not.
    assert "Llama 2" in sections["PPOSettings"]["description"]


def test_every_setting_has_a_default_or_is_required_on_purpose() -> None:
    required = {
        prefix + name
        for prefix, model in groups()
        for name, field in model.model_fields.items()
        if field.is_required()
    }
    judges = {"truthfulqa.truth_judge", "truthfulqa.info_judge", "toxigen.judge", "refusal_judge"}
    named = {f"evaluation.{judge}.path" for judge in judges} | {"red_teaming.attacker.path"}
    assert required == {"name", "data", "model"} | named
    # The walk reached the depths.
    assert "ppo.rollout.weight_sync." in dict(groups())


def test_every_group_is_strict_and_frozen() -> None:
    for prefix, model in groups():
        config = model.model_config
        assert (config["extra"], config["frozen"], config["strict"]) == ("forbid", True, True), (
            prefix
        )


@given(
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(1e-12, 1e3),
    steps=st.integers(1, 10**6),
    minibatch=st.integers(1, 64),
    times=st.integers(2, 8),
    stop=st.none() | st.fixed_dictionaries({"every": st.integers(1, 100)}),
    labels=st.dictionaries(st.text(), st.text(), max_size=3),
    path=st.text(),
)
def test_a_recipe_survives_its_own_file(
    seed: int,
    rate: float,
    steps: int,
    minibatch: int,
    times: int,
    stop: Document | None,
    labels: dict[str, str],
    path: str,
) -> None:
    """What a run directory keeps: every default spelled out, read again as the same recipe."""
    recipe = parse_recipe(
        document(
            seed=seed,
            model={"path": path},
            sft={"optimizer": {"learning_rate": rate}, "resources": {"labels": labels}},
            ppo={
                "steps": steps,
                "minibatch_size": minibatch,
                "batch_size": minibatch * times,
                "early_stop": stop,
            },
        )
    )
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    assert parse_recipe(yaml.safe_load(text)) == recipe
    assert recipe.sft.optimizer.learning_rate == rate
