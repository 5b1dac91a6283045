"""The PPO stage of a run: start all roles, measure, train, measure again."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from transformers import PreTrainedTokenizerBase

from actors.mixes import RewardMix, make_mix
from actors.models import load_tokenizer, reads_tokens_of, speak_alike
from actors.reward_model import RewardModel
from actors.roles import ModelPaths, Roles
from actors.rollout_worker import RolloutWorker, rollout_environment
from actors.sharding import Deal, deal
from cluster.atomic import new_directory
from cluster.config.ppo import PPOSettings, SamplingSettings
from cluster.config.recipe import Recipe
from cluster.errors import InputError
from cluster.placement import Placement, RoleRequest
from cluster.progress import announce
from cluster.seeds import stage_seed
from cluster.types import Float32Array, Prompt, Rollout
from pipelines.context import RunContext
from pipelines.evaluate import Judge, choose_held_out, evaluate, model_judge, oracle_judge
from pipelines.judgements import ORACLE, StageEvaluation
from pipelines.ppo import PPO
from pipelines.prompt_stream import EncodedPrompt, encode_prompts
from pipelines.samples import write_samples


def run_ppo(context: RunContext) -> None:
    """PPO from the SFT model, with the two reward models; measured before and after."""
    began = time.perf_counter()
    recipe, run, settings = context.recipe, context.run, context.recipe.ppo
    seed = stage_seed(recipe.seed, "ppo")
    paths = model_paths(context)
    tokenizer = load_tokenizer(paths.policy, "ppo.policy.path")
    _require_same_tokens(tokenizer, paths)
    prompts, too_long = _encode(tokenizer, context.data.prompts, settings.sampling, "ppo")
    validation, validation_too_long = _validation(context, tokenizer)
    announce("ppo: starting policy, critic, reference, reward models and rollout workers")
    roles = Roles(settings, paths, max_model_len(recipe), int(tokenizer.eos_token_id), seed)
    started = time.perf_counter()
    try:
        _measure_start(context, paths.policy, roles)
        stage = PPO(
            settings,
            roles,
            tokenizer,
            prompts,
            validation,
            run,
            context.metrics,
            seed,
            context.stop.is_set,
        )
        trained = stage.train()
        shutil.rmtree(run.model_dir("ppo"), ignore_errors=True)
        with new_directory(run.model_dir("ppo")) as directory:
            roles.export(directory)
        parents = {role: path for role, path in asdict(paths).items() if path is not None}
        context.record_model("ppo", parents)
        evaluation = measure(
            context,
            "ppo",
            paths.policy,
            roles.sample,
            trained.version,
            trained.steps,
            roles,
            stage.mix,
        )
    finally:
        roles.release()
    run.complete_stage(
        "ppo",
        {
            "seconds": time.perf_counter() - began,
            "startup_seconds": started - began,
            "prompts": len(prompts),
            "prompts_too_long": too_long,
            "validation_prompts": len(validation),
            "validation_prompts_too_long": validation_too_long,
            **asdict(trained),
            "evaluation": evaluation.model_dump(mode="json"),
        },
    )


def _measure_start(context: RunContext, policy: str, roles: Roles) -> None:
    """Measure what PPO starts from, where that was not done: both scores are at hand here.

    The SFT model's evaluation is the SFT stage's; any other start has an entry of its own.
    """
    began = time.perf_counter()
    is_sft = "sft" in context.recipe.stages and policy == context.sft_model()
    name = "sft" if is_sft else "start"
    result = context.run.stage_result(name)
    if result is not None and result["evaluation"] is not None:
        return
    mix = make_mix(context.recipe.ppo.mix)
    evaluation = measure(context, name, policy, roles.sample, 0, 0, roles, mix)
    if result is None:
        result = {"seconds": time.perf_counter() - began}
    _keep_evaluation(context, name, result, evaluation)


def measure_sft(context: RunContext) -> None:
    """Measure the SFT model by itself, for recipes that end before PPO."""
    settings = context.recipe.ppo
    path = context.sft_model()
    tokenizer = load_tokenizer(path)
    request = RoleRequest("rollout", settings.rollout.replicas, settings.rollout.resources)
    placement = Placement([request], [])
    arguments = {
        "model": path,
        "settings": settings.rollout,
        "max_model_len": max_model_len(context.recipe),
        "eos_token_id": int(tokenizer.eos_token_id),
        "seed": stage_seed(context.recipe.seed, "ppo"),
        "version": 0,
    }
    workers = placement.start(
        "rollout",
        RolloutWorker,
        [arguments] * settings.rollout.replicas,
        rollout_environment(settings.rollout),
    )
    try:
        mix = make_mix(settings.mix)
        evaluation = measure(context, "sft", path, deal(workers), 0, 0, None, mix)
    finally:
        placement.release()
    result = context.run.stage_result("sft")
    assert result is not None
    _keep_evaluation(context, "sft", result, evaluation)


def _keep_evaluation(
    context: RunContext, stage: str, result: dict[str, Any], evaluation: StageEvaluation
) -> None:
    context.run.complete_stage(stage, result | {"evaluation": evaluation.model_dump(mode="json")})


def measure(
    context: RunContext,
    stage: str,
    policy: str,
    sample: Deal,
    version: int,
    step: int,
    roles: Roles | None,
    mix: RewardMix,
) -> StageEvaluation:
    """Measure a policy on the held-out prompts and keep its answers.

    Args:
        stage: whose policy this is.
        policy: where the policy's tokenizer is.
        sample: the rollout workers.
        version: the weight version to sample from.
        step: the step after which this is measured.
        roles: with the reward models, or None where there are none.
        mix: says which reward model would decide.
    """
    recipe = context.recipe
    announce(f"{stage}: measuring on held-out prompts")
    tokenizer = load_tokenizer(policy)
    sampling = recipe.evaluation.sampling
    fitting, too_long = _encode(tokenizer, context.data.held_out_prompts, sampling, "evaluation")
    if too_long:
        announce(f"{stage}: {too_long} held-out prompts are too long and left out")
    with _judge(context, policy) as (name, judge):
        evaluation, samples = evaluate(
            choose_held_out(fitting, recipe.evaluation),
            sample,
            sampling,
            version,
            step,
            recipe.seed,
            tokenizer,
            name,
            judge,
            roles.reward_scores if roles else None,
            mix,
        )
    write_samples(context.run.samples_path(stage), samples)
    return evaluation


def model_paths(context: RunContext) -> ModelPaths:
    """Which model each role starts from: the recipe's own, else what the stages made."""
    settings: PPOSettings = context.recipe.ppo
    policy = settings.policy.path or context.sft_model()
    run = context.run
    helpfulness = settings.helpfulness.path or str(run.model_dir("reward_helpfulness"))
    return ModelPaths(
        policy=policy,
        critic=_critic_start(settings, policy, helpfulness) if settings.has_critic else None,
        reference=settings.reference.path or policy,
        safety=settings.safety.path or str(run.model_dir("reward_safety")),
        helpfulness=helpfulness,
    )


def _critic_start(settings: PPOSettings, policy: str, helpfulness: str) -> str:
    if settings.critic.path is not None:
        return settings.critic.path
    tokenizer = load_tokenizer(policy, "ppo.policy.path")
    if reads_tokens_of(helpfulness, tokenizer, "ppo.helpfulness.path"):
        return helpfulness
    announce("ppo: the critic starts from the policy: the helpfulness model has other tokens")
    return policy


def max_model_len(recipe: Recipe) -> int:
    """Longest prompt plus answer that the recipe samples, in tokens."""
    both = (recipe.ppo.sampling, recipe.evaluation.sampling)
    return max(one.max_prompt_tokens + one.max_response_tokens for one in both)


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: SamplingSettings,
    section: str,
) -> tuple[list[EncodedPrompt], int]:
    field = f"{section}.sampling.max_prompt_tokens"
    return encode_prompts(tokenizer, prompts, sampling.max_prompt_tokens, field)


def _validation(
    context: RunContext, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedPrompt], int]:
    """Held-out prompts for early stopping: as many adversarial ones as others, while they last."""
    settings = context.recipe.ppo
    if settings.early_stop is None:
        return [], 0
    encoded, too_long = _encode(
        tokenizer, context.data.validation_prompts, settings.sampling, "ppo"
    )
    kinds = [
        [one for one in encoded if one.prompt.adversarial is adversarial]
        for adversarial in (True, False)
    ]
    dealt = [one for pair in zip_longest(*kinds) for one in pair if one is not None]
    return dealt[: settings.early_stop.prompts], too_long


def _require_same_tokens(tokenizer: PreTrainedTokenizerBase, paths: ModelPaths) -> None:
    """Reference and critic read the policy's token ids as they are.

    Raises:
        InputError: one of them has another tokenizer.
    """
    for role, path in (("reference", paths.reference), ("critic", paths.critic)):
        if path is None:
            continue
        if not speak_alike(tokenizer, load_tokenizer(path, f"ppo.{role}.path")):
            raise InputError(
                f"ppo.{role}.path", path, f"a model with the policy's tokenizer ({paths.policy})"
            )


def _scores_of(judge: ActorHandle, rollouts: Sequence[Rollout]) -> Float32Array:
    scores: Any = ray.get(judge.score.remote(rollouts))
    return np.asarray(scores, dtype=np.float32)


@contextmanager
def _judge(context: RunContext, policy: str) -> Iterator[tuple[str | None, Judge | None]]:
    """Who judges: the oracle where there is one, else the judge model, else nobody."""
    settings = context.recipe.evaluation.judge
    if context.data.oracle is not None:
        yield ORACLE, oracle_judge(context.data.oracle)
    elif settings is None:
        yield None, None
    else:
        assert settings.path is not None
        placement = Placement([RoleRequest("judge", 1, settings.resources)], [])
        arguments = {
            "role": "judge",
            "path": settings.path,
            "settings": settings,
            "policy_path": policy,
        }
        (judge,) = placement.start("judge", RewardModel, [arguments], {})
        try:
            yield settings.path, model_judge(partial(_scores_of, judge))
        finally:
            placement.release()
