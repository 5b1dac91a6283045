"""All roles for real: vLLM samples, DeepSpeed learns, weights travel, nobody disagrees."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rayward.actors.models.loading import load_scalar_model, load_tokenizer, save_model
from rayward.actors.roles import ModelPaths, Roles
from rayward.actors.scoring.mixes import make_mix
from rayward.actors.text.chat import encode_prompt
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.errors import StaleEngineError
from rayward.cluster.types import Message, Prompt, Scores
from rayward.pipelines.ppo.experience import make_experience
from tests.small_actors import Deaf
from tests.tiny import write_tiny_llama

BATCH = 512
TOLERANCE = 1e-4

SETTINGS = PPOSettings.model_validate(
    {
        "batch_size": BATCH,
        "minibatch_size": 64,
        "sampling": {"max_prompt_tokens": 64, "max_response_tokens": 12, "temperature": 0.7},
        "policy": {"optimizer": {"learning_rate": 1e-3}, "max_tokens_per_microbatch": 1024},
        "critic": {"optimizer": {"learning_rate": 1e-3}},
        # Several buckets for a model of half a megabyte.
        "rollout": {"weight_sync": {"bucket_bytes": 100_000, "timeout_s": 60.0}},
    }
)


def prompts(count: int = BATCH) -> list[Prompt]:
    return [
        Prompt(
            str(i), (Message("user", "ab" * (i % 9 + 1)),), None, None, i % 2 == 0, False, "test"
        )
        for i in range(count)
    ]


class Cast:
    """Started roles and how to ask them."""

    def __init__(self, model: str, rewards: list[str], settings: PPOSettings = SETTINGS) -> None:
        self.tokenizer = load_tokenizer(model)
        safety, helpfulness = rewards
        self.history: list[tuple[Scores, dict[str, float]]] = []
        self.roles = Roles(
            settings,
            ModelPaths(
                policy=model,
                critic=helpfulness,
                reference=model,
                safety=safety,
                helpfulness=helpfulness,
            ),
            max_model_len=96,
            eos_token_id=int(self.tokenizer.eos_token_id),
            seed=0,
        )
        self.version = 0

    def sample(self, version: int, seed: int = 0) -> list[ray.ObjectRef]:
        asked = prompts()
        tokens = [encode_prompt(self.tokenizer, prompt.messages) for prompt in asked]
        seeds = [1000 * seed + i for i in range(len(asked))]
        return self.roles.sample(asked, tokens, seeds, SETTINGS.sampling, version)

    def step(self) -> tuple[Scores, dict[str, float]]:
        scores = self.roles.score(self.sample(self.version, seed=self.version))
        beta = SETTINGS.kl.beta
        batch = make_experience(scores, make_mix(SETTINGS.mix), SETTINGS, beta, self.version)
        learned = self.roles.update(batch.experiences, self.version, beta)
        self.version += 1
        self.roles.sync(self.version)
        self.history.append((scores, batch.metrics | learned))
        return self.history[-1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def rewards(model: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two reward models with the policy's body and heads of their own."""
    made = []
    for seed in (1, 2):
        directory = tmp_path_factory.mktemp("reward")
        scalar = load_scalar_model(model, "float32", seed=seed)
        save_model(scalar, load_tokenizer(model), directory)
        made.append(str(directory))
    return made


@pytest.fixture(scope="module")
def cast(model: str, rewards: list[str], ray_session: None) -> Iterator[Cast]:
    cast = Cast(model, rewards)
    yield cast
    cast.roles.release()


def test_before_the_first_update_nobody_disagrees(cast: Cast) -> None:
    scores = cast.roles.score(cast.sample(cast.version))
    for rollout, policy, reference in zip(
        scores.rollouts, scores.policy_logprobs, scores.reference_logprobs, strict=True
    ):
        assert policy == pytest.approx(rollout.sampler_logprobs, abs=1e-4)
        # The same weights: KL 0 and every ratio 1.
        assert policy == pytest.approx(reference, abs=1e-5)
    assert [rollout.prompt.id for rollout in scores.rollouts] == [p.id for p in prompts()]
    assert scores.safety.shape == scores.helpfulness.shape == (BATCH,)
    assert all(rollout.policy_version == 0 for rollout in scores.rollouts)


def test_sampler_and_learner_agree_after_every_sync_and_the_reference_stays(cast: Cast) -> None:
    digest = cast.roles.reference_digest()
    for _ in range(3):
        _, metrics = cast.step()
        assert metrics["rollout/logprob_diff_mean"] <= TOLERANCE
        # 512 rollouts in minibatches of 64, one optimizer step each.
        assert metrics["actor/optimizer_steps"] == 8
    # The policy has moved, so the agreement is not that of two models that stood still.
    scores, metrics = cast.step()
    assert metrics["rollout/logprob_diff_mean"] <= TOLERANCE
    moved = [
        np.abs(p - r).mean()
        for p, r in zip(scores.policy_logprobs, scores.reference_logprobs, strict=True)
    ]
    assert np.mean(moved) > 10 * TOLERANCE
    assert cast.roles.reference_digest() == digest


def test_nothing_is_sampled_from_an_engine_that_missed_a_version(cast: Cast) -> None:
    with pytest.raises(StaleEngineError, match=f"asked for version {cast.version + 1}"):
        ray.get(cast.sample(cast.version + 1))


def test_an_unfinished_update_is_not_sampled_from(cast: Cast) -> None:
    worker = cast.roles.rollout_workers[0]
    ray.get(worker.start_weight_update.remote())
    with pytest.raises(StaleEngineError, match="an unfinished update"):
        ray.get(cast.sample(cast.version))
    ray.get(worker.finish_weight_update.remote(str(cast.version)))
    cast.step()  # whole again, once weights have arrived


def test_more_prompt_tokens_than_fit_one_pass_of_the_sampler(cast: Cast) -> None:
    # 256 sequences of about 60 tokens at once are twice what vLLM reads in one pass.
    asked = [replace(prompt, messages=(Message("user", "ab" * 25),)) for prompt in prompts()]
    tokens = [encode_prompt(cast.tokenizer, prompt.messages) for prompt in asked]
    assert 256 * len(tokens[0]) > 8192
    shards = cast.roles.sample(asked, tokens, list(range(BATCH)), SETTINGS.sampling, cast.version)
    scores = cast.roles.score(shards)
    assert len(scores.rollouts) == BATCH
    for policy, rollout in zip(scores.policy_logprobs, scores.rollouts, strict=True):
        assert policy == pytest.approx(rollout.sampler_logprobs, abs=1e-4)


def test_a_sampler_that_does_not_answer_is_an_error_in_time(ray_session: None) -> None:
    from rayward.actors.learning.weight_sync import TimedSyncClient

    actor = ray.remote(Deaf).remote()
    with pytest.raises(ray.exceptions.GetTimeoutError):
        TimedSyncClient([actor], timeout_s=1.0).start_weight_update()
    ray.kill(actor)


def test_the_same_seeds_give_the_same_tokens_and_others_do_not(cast: Cast) -> None:
    def answers(seed: int) -> list[list[int]]:
        shards = ray.get(cast.sample(cast.version, seed=seed))
        return [rollout.token_ids.tolist() for shard in shards for rollout in shard]

    assert answers(7) == answers(7)
    assert answers(7) != answers(8)


def test_what_comes_out_loads_as_it_is_and_a_checkpoint_restores_it(
    cast: Cast, tmp_path: Path
) -> None:
    cast.roles.export(tmp_path / "before")
    (tmp_path / "checkpoint").mkdir()
    cast.roles.save(tmp_path / "checkpoint")
    saved_version = cast.version
    first, _ = cast.step()
    cast.roles.restore(tmp_path / "checkpoint")
    cast.version = saved_version
    cast.roles.sync(saved_version)
    cast.roles.export(tmp_path / "after")
    weights = "model.safetensors"
    assert (tmp_path / "before" / weights).read_bytes() == (
        tmp_path / "after" / weights
    ).read_bytes()
    # The step after the restore is the step that was, bit for bit.
    again, _ = cast.step()
    for one, other in zip(first.policy_logprobs, again.policy_logprobs, strict=True):
        assert np.array_equal(one, other)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert model.num_parameters() > 0
    assert load_tokenizer(str(tmp_path / "after")).chat_template


def test_reward_models_are_ordinary_classifiers(rewards: list[str]) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(rewards[0])
    assert loaded.config.num_labels == 1


@pytest.mark.slow
def test_two_processes_of_every_role_do_what_one_does(
    cast: Cast, model: str, rewards: list[str]
) -> None:
    document = SETTINGS.model_dump(mode="json")
    for role in ("policy", "critic"):
        document[role]["deepspeed"] = {"ranks": 2, "zero_stage": 2}
    for role in ("reference", "safety", "helpfulness", "rollout"):
        document[role]["replicas"] = 2
    while len(cast.history) < 2:
        cast.step()
    doubled = Cast(model, rewards, PPOSettings.model_validate(document))
    try:
        for scores, metrics in cast.history[:2]:
            found, numbers = doubled.step()
            for one, other in zip(scores.rollouts, found.rollouts, strict=True):
                assert one.token_ids.tolist() == other.token_ids.tolist()
            for name in ("policy_logprobs", "reference_logprobs", "values"):
                for one, other in zip(getattr(scores, name), getattr(found, name), strict=True):
                    assert one == pytest.approx(other, abs=TOLERANCE)
            # The first step's are equal bit for bit: nothing has been learned yet.
            assert scores.safety == pytest.approx(found.safety, abs=1e-6)
            assert scores.helpfulness == pytest.approx(found.helpfulness, abs=1e-6)
            for name in ("actor/pg_loss", "critic/vf_loss", "actor/grad_norm", "actor/entropy"):
                assert numbers[name] == pytest.approx(metrics[name], abs=TOLERANCE)
    finally:
        doubled.roles.release()
