"""A run's directory serves what the run made, and nothing that it did not."""

import json
from pathlib import Path

import pytest

from rayward.cluster.config.load import parse_recipe, parse_serving
from rayward.cluster.errors import InputError
from rayward.cluster.runs.run_directory import RunDirectory, write_json
from rayward.services.gateway.from_run import serving_of_run


def make_run(root: Path, models: list[str], **recipe: object) -> RunDirectory:
    stages = ["sft", "reward_safety", "reward_helpfulness", "ppo"]
    document = {"name": "small", "data": {"tiny_world": {}}, "model": {"make": {}}}
    with RunDirectory.create(root, parse_recipe({**document, "stages": stages, **recipe})) as run:
        for name in models:
            run.model_dir(name).mkdir(parents=True)
            (run.model_dir(name) / "config.json").write_text("{}")
            run.record_model(name, {})
    return run


def test_a_whole_run_serves_its_last_policy_and_both_reward_models(tmp_path: Path) -> None:
    models = ["sft", "reward_safety", "reward_helpfulness", "ppo", "ppo-2"]
    run = make_run(tmp_path / "runs" / "one", models, ppo={"mix": {"threshold": 0.3}})
    settings = parse_serving(serving_of_run(run.root))
    assert settings.policy is not None
    assert settings.reward is not None
    assert settings.jobs is not None
    assert settings.policy.path == str(run.model_dir("ppo-2"))
    assert settings.reward.policy == str(run.model_dir("ppo-2"))
    assert settings.reward.safety is not None
    assert settings.reward.safety.path == str(run.model_dir("reward_safety"))
    assert settings.reward.helpfulness is not None
    assert settings.reward.helpfulness.path == str(run.model_dir("reward_helpfulness"))
    assert settings.reward.gate == 0.3
    assert settings.jobs.runs_root == str(tmp_path / "runs")


def test_the_policy_that_passed_the_gates_goes_before_the_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", ["sft", "ppo"])
    write_json(run.promoted_path, {"policy": "sft", "model": "/elsewhere/models/sft"})
    assert serving_of_run(run.root)["policy"]["path"] == str(run.model_dir("sft"))


def test_reward_models_score_in_the_passes_of_training(tmp_path: Path) -> None:
    """A fixed pass has as many rows as that limit has room for, and rows may change last bits."""
    ppo = {"safety": {"max_tokens_per_microbatch": 512, "precision": "bfloat16"}}
    run = make_run(tmp_path / "one", ["sft", "reward_safety", "reward_helpfulness"], ppo=ppo)
    settings = parse_serving(serving_of_run(run.root))
    assert settings.reward is not None
    assert settings.reward.safety is not None
    assert settings.reward.helpfulness is not None
    assert settings.reward.safety.max_tokens_per_microbatch == 512
    assert settings.reward.safety.precision == "bfloat16"
    own = run.recipe().ppo.helpfulness.max_tokens_per_microbatch
    assert settings.reward.helpfulness.max_tokens_per_microbatch == own


def test_a_run_without_reward_models_serves_its_policy_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", ["sft"], stages=["sft"])
    assert "reward" not in serving_of_run(run.root)


def test_the_multiplier_is_the_one_that_training_ended_with(tmp_path: Path) -> None:
    mix = {"name": "lagrangian", "initial_multiplier": 1.0}
    run = make_run(tmp_path / "one", ["sft", "reward_safety"], ppo={"mix": mix})
    rows = [{"stage": "ppo", "step": n, "reward/lagrange_multiplier": 1.0 + n} for n in range(3)]
    torn = '{"stage": "ppo", "reward/lagrange_mul'
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    settings = parse_serving(serving_of_run(run.root))
    assert settings.reward is not None
    assert settings.reward.mix.name == "lagrangian"
    assert settings.reward.mix.initial_multiplier == 3.0


@pytest.mark.parametrize("there", [True, False])
def test_a_directory_that_serves_nothing_is_refused(tmp_path: Path, there: bool) -> None:
    if there:
        make_run(tmp_path / "one", [])
    with pytest.raises(InputError, match="--run"):
        serving_of_run(tmp_path / "one")
