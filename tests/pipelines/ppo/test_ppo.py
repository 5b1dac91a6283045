"""A PPO stage run to its end, stopped and resumed: the same seed gives the same bits."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from rayward.actors.models.loading import load_scalar_model, load_tokenizer, save_model
from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import RunStopped
from rayward.cluster.records.plan import make_plan
from rayward.cluster.records.samples import read_samples
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import MetricsWriter, read_metrics
from rayward.pipelines.ppo.train import run_ppo
from rayward.pipelines.run.context import open_context
from rayward.pipelines.run.data import load_data
from tests.tiny import write_tiny_llama

STEPS = 4
STOP_AFTER = 2


class StopAfter:
    """A stop request that comes once so many steps have asked for it."""

    def __init__(self, steps: int | None) -> None:
        self._steps = steps
        self._asked = 0

    def is_set(self) -> bool:
        self._asked += 1
        return self._steps is not None and self._asked >= self._steps


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    policy = write_tiny_llama(tmp_path_factory.mktemp("policy"))
    tokenizer = load_tokenizer(str(policy))
    paths = {}
    for seed, axis in enumerate(("safety", "helpfulness")):
        paths[axis] = str(tmp_path_factory.mktemp(axis))
        save_model(load_scalar_model(str(policy), "float32", seed), tokenizer, Path(paths[axis]))
    sampling = {"max_prompt_tokens": 300, "max_response_tokens": 16}
    learner = {"optimizer": {"learning_rate": 1e-3}}
    return parse_recipe(
        {
            "name": "test",
            "seed": 3,
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
                    "validation_benign": 4,
                }
            },
            "model": {"path": str(policy)},
            "stages": ["ppo"],
            "ppo": {
                "steps": STEPS,
                "batch_size": 24,
                "minibatch_size": 12,
                "sampling": sampling,
                "policy": learner,
                "critic": learner,
                "safety": {"path": paths["safety"]},
                "helpfulness": {"path": paths["helpfulness"]},
                "early_stop": {"every": 1, "prompts": 12, "patience": STEPS + 1},
                "checkpoint": {"every": 2, "keep": 1},
            },
            "evaluation": {"sampling": sampling},
        }
    )


def train(recipe: Recipe, root: Path, stop_after: int | None, resume: bool = False) -> None:
    with (RunDirectory.resume if resume else RunDirectory.create)(root, recipe) as run:
        data = load_data(recipe, run)
        with (
            MetricsWriter(run.metrics_path, run.tensorboard_dir) as metrics,
            open_context(run, data, metrics, StopAfter(stop_after)) as context,
        ):
            (stage,) = make_plan(recipe)
            run_ppo(context, stage)


@pytest.fixture(scope="module")
def runs(
    recipe: Recipe, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunDirectory, RunDirectory]]:
    """One run straight through, and one that was stopped and went on in new processes."""
    straight, stopped = (tmp_path_factory.mktemp(name) for name in ("straight", "stopped"))
    train(recipe, straight, stop_after=None)
    with pytest.raises(RunStopped, match=f"after step {STOP_AFTER}"):
        train(recipe, stopped, stop_after=STOP_AFTER)
    train(recipe, stopped, stop_after=None, resume=True)
    return RunDirectory(straight), RunDirectory(stopped)


def repeatable(run: RunDirectory) -> list[dict[str, float]]:
    unlike = ("timing/", "perf/", "time")
    return [
        {name: value for name, value in row.items() if not name.startswith(unlike)}
        for row in read_metrics(run.metrics_path)
    ]


def test_stopped_and_resumed_is_the_same_run_bit_for_bit(
    runs: tuple[RunDirectory, RunDirectory],
) -> None:
    straight, stopped = runs
    weights = Path("model.safetensors")
    one, other = (run.model_dir("ppo") / weights for run in runs)
    assert one.read_bytes() == other.read_bytes()
    assert repeatable(straight) == repeatable(stopped)
    assert [row["step"] for row in repeatable(straight)] == list(range(1, STEPS + 1))
    start = Path(straight.recipe().model.path or "") / weights
    assert one.read_bytes() != start.read_bytes()


def test_the_same_answers_were_sampled(runs: tuple[RunDirectory, RunDirectory]) -> None:
    for step in range(1, STEPS + 1):
        one, other = (read_samples(run.step_samples_path("ppo", step)) for run in runs)
        assert one == other
        assert {sample.policy_version for sample in one} == {step - 1}
        assert {sample.decided_by for sample in one} <= {"safety", "helpfulness"}
        assert all(sample.decided_by == "safety" for sample in one if sample.prompt.adversarial)


def test_sampler_and_learner_agree_at_every_step(runs: tuple[RunDirectory, RunDirectory]) -> None:
    for run in runs:
        for row in read_metrics(run.metrics_path):
            assert row["rollout/logprob_diff_mean"] <= 1e-4


def test_step_one_starts_at_the_reference(runs: tuple[RunDirectory, RunDirectory]) -> None:
    first = repeatable(runs[0])[0]
    assert first["actor/reference_kl"] == pytest.approx(0, abs=1e-6)
    assert repeatable(runs[0])[-1]["actor/reference_kl"] != pytest.approx(0, abs=1e-6)


def test_the_result_names_the_best_step_and_the_reference_that_never_changed(
    runs: tuple[RunDirectory, RunDirectory],
) -> None:
    results = [run.stage_result("ppo") for run in runs]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0]["reference_digest"] == results[1]["reference_digest"]
    assert results[0]["best_step"] == results[1]["best_step"]
    objectives = {row["step"]: row["validation/objective"] for row in repeatable(runs[0])}
    assert results[0]["best_step"] == max(objectives, key=lambda step: objectives[step])


def test_the_resolved_recipe_is_in_the_run(runs: tuple[RunDirectory, RunDirectory]) -> None:
    written = yaml.safe_load(runs[0].recipe_path.read_text())
    assert written["ppo"]["gae_lambda"] == 0.95


@pytest.fixture(scope="module")
def other_way(
    recipe: Recipe, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """GRPO with rollouts a step ahead, a steered mix and a steered beta; stopped and resumed."""
    document = recipe.model_dump(mode="json")
    document["ppo"] |= {
        "steps": 6,
        "advantage_estimator": "grpo",
        "samples_per_prompt": 3,
        "max_staleness": 1,
        "mix": {"name": "lagrangian", "cost_limit": 0.2, "learning_rate": 0.5},
        "checkpoint": {"every": 3, "keep": 1},
        "early_stop": None,
    }
    document["ppo"]["kl"] |= {"adaptive": {"target": 0.01, "horizon": 100}}
    other = parse_recipe(document)
    root = tmp_path_factory.mktemp("other")
    with pytest.raises(RunStopped, match="after step 3"):
        train(other, root, stop_after=3)
    train(other, root, stop_after=None, resume=True)
    return RunDirectory(root)


def test_no_rollout_was_older_than_the_bound(other_way: RunDirectory) -> None:
    ages = set()
    for step in range(1, 7):
        samples = read_samples(other_way.step_samples_path("ppo", step))
        assert len(samples) == 24
        ages |= {step - 1 - sample.policy_version for sample in samples}
        # Eight prompts, and the three answers to each stand together.
        names = [sample.prompt.id for sample in samples]
        assert names[::3] == names[1::3] == names[2::3]
    assert ages == {0, 1}


def test_grpo_has_no_critic(other_way: RunDirectory) -> None:
    for row in repeatable(other_way):
        assert not any(name.startswith("critic/vf") for name in row)
        assert row["actor/kl_loss"] >= 0
    lineage = other_way.manifest()["lineage"]["ppo"]["parents"]
    assert sorted(lineage) == ["helpfulness", "policy", "reference", "safety"]


def test_multiplier_and_beta_go_on_where_they_were(other_way: RunDirectory) -> None:
    rows = repeatable(other_way)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["reward/lagrange_multiplier"] == 1.0
    for row, following in pairwise(rows):
        multiplier = row["reward/lagrange_multiplier"]
        excess = row["reward/cost/mean"] - 0.2
        expected = multiplier * math.exp(0.5 * multiplier * excess)
        assert following["reward/lagrange_multiplier"] == pytest.approx(expected)
        # 24 of 100 rollouts, the error counting as a fifth at most.
        assert 1 - 0.0481 <= following["actor/kl_coef"] / row["actor/kl_coef"] <= 1 + 0.0481
        assert following["actor/kl_coef"] != row["actor/kl_coef"]


def test_each_sample_says_the_weights_of_both_models(other_way: RunDirectory) -> None:
    for row in repeatable(other_way):
        multiplier = row["reward/lagrange_multiplier"]
        for sample in read_samples(other_way.step_samples_path("ppo", int(row["step"]))):
            assert sample.decided_by == "both"
            assert sample.safety_weight == pytest.approx(multiplier / (1 + multiplier))
            assert sample.helpfulness_weight == pytest.approx(1 / (1 + multiplier))
