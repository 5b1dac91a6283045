"""The loop of PPO around models that are one number: what it measures, keeps and goes back to."""

from collections.abc import Callable, Iterator, Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.ppo import PPOSettings, SamplingSettings
from rayward.cluster.errors import RunStopped
from rayward.cluster.runs.checkpoints import CheckpointStore
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import MetricsWriter, read_metrics
from rayward.cluster.types import Experience, Message, Prompt, Rollout, Scores
from rayward.pipelines.ppo.loop import PPO
from rayward.pipelines.run.encoding import EncodedPrompt
from tests.tiny import tiny_tokenizer

BETA = 0.1
KL = 0.5  # of each of an answer's two tokens


def asked(name: str, count: int) -> list[EncodedPrompt]:
    return [
        EncodedPrompt(
            Prompt(f"{name}{i}", (Message("user", "x"),), None, None, False, False, "test"), [7]
        )
        for i in range(count)
    ]


TRAINING, VALIDATION = asked("training", 8), asked("validation", 3)


def answers(prompts: Sequence[Prompt], version: int) -> list[Rollout]:
    return [
        Rollout(
            prompt=prompt,
            sample_index=0,
            policy_version=version,
            token_ids=np.array([7, 8, 9]),
            response_start=1,
            sampler_logprobs=np.full(2, -1.0, np.float32),
            finish_reason="stop",
        )
        for prompt in prompts
    ]


class Cast:
    """Stands for all roles. The policy's weights are the number of updates it has seen.

    Args:
        quality: the helpfulness logit of what the policy says, by its weights.
    """

    def __init__(self, quality: Callable[[int], float]) -> None:
        self._quality = quality
        self.weights = 0
        self.sampler = 0, 0  # the version that it goes by, and the weights that it has
        self.measured: list[str] = []
        self.kl_coefs: list[float] = []

    def reference_digest(self) -> str:
        return "sha256:00"

    def sample(
        self,
        prompts: Sequence[Prompt],
        token_ids: Sequence[list[int]],
        seeds: Sequence[int],
        sampling: SamplingSettings,
        version: int,
    ) -> list[list[Rollout]]:
        assert version == self.sampler[0]
        assert len(prompts) == len(token_ids) == len(seeds)
        self.measured += [prompt.id for prompt in prompts]
        return [answers(prompts, version)]

    def score(self, shards: Sequence[list[Rollout]], *_: object, **__: object) -> Scores:
        rollouts = [rollout for shard in shards for rollout in shard]
        count = len(rollouts)
        return Scores(
            rollouts=rollouts,
            policy_logprobs=[np.full(2, -1.0, np.float32)] * count,
            reference_logprobs=[np.full(2, -1.0 - KL, np.float32)] * count,
            values=[np.zeros(2, np.float32)] * count,
            # Safe, so that helpfulness decides.
            safety=np.full(count, 9.0, np.float32),
            helpfulness=np.full(count, self._quality(self.sampler[1]), np.float32),
        )

    def update(
        self, experiences: Sequence[Experience], version: int, kl_coef: float, *_: object
    ) -> dict[str, float]:
        assert version == self.sampler[0]
        self.kl_coefs.append(kl_coef)
        self.weights += 1
        return {}

    def sync(self, version: int) -> None:
        self.sampler = version, self.weights

    def save(self, directory: Path) -> None:
        (directory / "weights").write_text(str(self.weights))

    def restore(self, directory: Path) -> None:
        self.weights = int((directory / "weights").read_text())


class Queue:
    """Stands for the queue of rollouts, which knows Ray: every batch is of the newest version."""

    version = 0

    def collect(self) -> tuple[list[list[Rollout]], list[object]]:
        return [answers([one.prompt for one in TRAINING[:4]], self.version)], []

    def wait(self, calls: Sequence[object]) -> None:
        pass

    def drain(self) -> None:
        pass

    def seeds(self, number: int, draws: int, count: int) -> list[int]:
        return list(range(count))

    def save(self, directory: Path) -> dict[str, Any]:
        return {}

    def restore(self, directory: Path, cursor: dict[str, Any], version: int) -> None:
        self.version = version


class Stage:
    """A PPO stage in a run of its own."""

    def __init__(self, root: Path) -> None:
        recipe = parse_recipe(
            {
                "name": "test",
                "data": {"tiny_world": {}},
                "model": {"path": "org/model"},
                "stages": ["ppo"],
                "ppo": {"safety": {"path": "org/s"}, "helpfulness": {"path": "org/h"}},
            }
        )
        self.run = RunDirectory.create(root, recipe)
        self.metrics = MetricsWriter(self.run.metrics_path, self.run.tensorboard_dir)
        self.store = CheckpointStore(self.run.checkpoints_dir / "ppo", keep=1)

    def ppo(
        self,
        cast: Cast,
        should_stop: Callable[[], bool] = lambda: False,
        **settings: Any,  # noqa: ANN401 (a recipe's)
    ) -> PPO:
        own = {"steps": 5, "batch_size": 4, "minibatch_size": 4, "kl": {"beta": BETA}} | settings
        roles: Any = cast
        ppo = PPO(
            "ppo",
            PPOSettings.model_validate(own),
            roles,
            tiny_tokenizer(),
            TRAINING,
            VALIDATION,
            self.run,
            self.metrics,
            seed=0,
            should_stop=should_stop,
        )
        queue: Any = Queue()
        ppo._rollouts = queue
        return ppo


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "run")
    with stage.run, stage.metrics:
        yield stage


def best_is_the_second(weights: int) -> float:
    return 2.0 if weights == 2 else 1.0 - 0.1 * weights


def test_it_measures_the_prompts_that_nobody_trains_on(stage: Stage) -> None:
    cast = Cast(best_is_the_second)
    stage.ppo(cast, early_stop={"every": 2, "patience": 9}).train()
    names = [one.prompt.id for one in VALIDATION]
    # After steps 2 and 4, and at the end.
    assert cast.measured == names * 3


def test_it_measures_probability_less_the_kl_of_whole_answers(stage: Stage) -> None:
    stage.ppo(Cast(best_is_the_second), steps=2, early_stop={"every": 1}).train()
    _, row = read_metrics(stage.run.metrics_path)
    assert row["validation/reward"] == pytest.approx(1 / (1 + exp(-2)), abs=1e-6)
    assert row["validation/sequence_kl"] == pytest.approx(2 * KL)
    assert row["validation/objective"] == pytest.approx(1 / (1 + exp(-2)) - BETA, abs=1e-6)


@pytest.mark.parametrize(("patience", "every"), [(2, 1), (9, 100)])
def test_the_best_measured_weights_are_what_it_ends_with(
    stage: Stage, patience: int, every: int
) -> None:
    cast = Cast(best_is_the_second)
    settings = {"early_stop": {"every": 1, "patience": patience}}
    # One checkpoint is kept, and that of the best step beside it, whenever the next one is due.
    result = stage.ppo(cast, checkpoint={"every": every, "keep": 1}, **settings).train()
    assert result.early_stopped is (patience == 2)
    assert result.steps == (4 if result.early_stopped else 5)
    assert (result.best_step, cast.weights) == (2, 2)
    # The samplers have them too, under a version that no other weights had.
    assert cast.sampler == (result.version, 2) == (result.steps + 1, 2)


def test_without_measurements_it_ends_with_the_last_weights(stage: Stage) -> None:
    cast = Cast(best_is_the_second)
    result = stage.ppo(cast, early_stop=None).train()
    assert (result.best_step, result.version, cast.weights) == (5, 5, 5)
    assert cast.measured == []


def test_a_stop_between_two_checkpoints_keeps_the_step_that_was_done(stage: Stage) -> None:
    cast = Cast(best_is_the_second)
    stops = iter([False, False, True])
    rare = {"early_stop": None, "checkpoint": {"every": 100, "keep": 1}}
    with pytest.raises(RunStopped, match="after step 3"):
        stage.ppo(cast, lambda: next(stops), **rare).train()
    assert stage.store.complete() == [3]
    again = Cast(best_is_the_second)
    assert stage.ppo(again, **rare).train().steps == 5
    assert again.weights == 5
    assert len(again.kl_coefs) == 2
    assert [row["step"] for row in read_metrics(stage.run.metrics_path)] == [1, 2, 3, 4, 5]


def test_a_resumed_stage_still_ends_with_the_best_weights_of_before(stage: Stage) -> None:
    settings = {"early_stop": {"every": 1, "patience": 9}, "checkpoint": {"every": 1, "keep": 1}}
    stops = iter([False, False, False, True])
    with pytest.raises(RunStopped, match="after step 4"):
        stage.ppo(Cast(best_is_the_second), lambda: next(stops), **settings).train()
    again = Cast(best_is_the_second)
    result = stage.ppo(again, **settings).train()
    assert (result.steps, result.best_step, again.weights) == (5, 2, 2)


def test_the_learners_are_told_the_weight_of_the_kl(stage: Stage) -> None:
    cast = Cast(best_is_the_second)
    steered = {"beta": BETA, "adaptive": {"target": 0.5, "horizon": 40}}
    stage.ppo(cast, steps=3, early_stop=None, kl=steered).train()
    # Twice the target counts as a fifth over it: 4 rollouts of 40 make that a fiftieth a step.
    assert cast.kl_coefs == pytest.approx([BETA, BETA * 1.02, BETA * 1.02**2])
