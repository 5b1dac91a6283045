"""The PPO stage of a run: start all roles, measure, train, measure again."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from transformers import PreTrainedTokenizerBase

from actors.mixes import make_mix
from actors.models import load_tokenizer
from actors.reward_model import RewardModel
from actors.roles import Deal, ModelPaths, Roles, deal
from actors.rollout_worker import RolloutWorker, rollout_environment
from cluster.atomic import new_directory
from cluster.config.ppo import PPOSettings
from cluster.placement import Placement, RoleRequest
from cluster.progress import announce
from cluster.seeds import stage_seed
from cluster.types import Float32Array, Rollout
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
    paths = model_paths(context)
    tokenizer = load_tokenizer(paths.policy, "ppo.policy.path")
    prompts, too_long = encode_prompts(
        tokenizer, context.data.prompts, settings.sampling.max_prompt_tokens
    )
    validation, validation_too_long = _validation(context, tokenizer)
    announce("ppo: starting policy, critic, reference, reward models and rollout workers")
    roles = Roles(
        settings,
        paths,
        _max_model_len(context),
        int(tokenizer.eos_token_id),
        stage_seed(recipe.seed, "ppo"),
    )
    started = time.perf_counter()
    try:
        if "sft" in recipe.stages and not _is_measured(context, "sft"):
            evaluation = measure(context, "sft", tokenizer, roles.sample, 0, 0, roles)
            result = run.stage_result("sft")
            assert result is not None
            run.complete_stage("sft", result | {"evaluation": evaluation.model_dump(mode="json")})
        stage = PPO(
            settings,
            roles,
            tokenizer,
            prompts,
            validation,
            run,
            context.metrics,
            stage_seed(recipe.seed, "ppo"),
            context.stop.is_set,
        )
        trained = stage.train()
        if not run.model_dir("ppo").exists():
            with new_directory(run.model_dir("ppo")) as directory:
                roles.export(directory)
        context.record_model("ppo", asdict(paths))
        evaluation = measure(
            context, "ppo", tokenizer, roles.sample, trained.version, trained.steps, roles
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
        "max_model_len": _max_model_len(context),
        "eos_token_id": int(tokenizer.eos_token_id),
        "seed": stage_seed(context.recipe.seed, "ppo"),
    }
    workers = placement.start(
        "rollout",
        RolloutWorker,
        [arguments] * settings.rollout.replicas,
        rollout_environment(settings.rollout),
    )
    try:
        sample = deal(workers)
        evaluation = measure(context, "sft", tokenizer, sample, 0, 0, None)
    finally:
        placement.release()
    result = context.run.stage_result("sft")
    assert result is not None
    context.run.complete_stage("sft", result | {"evaluation": evaluation.model_dump(mode="json")})


def measure(
    context: RunContext,
    stage: str,
    tokenizer: PreTrainedTokenizerBase,
    sample: Deal,
    version: int,
    step: int,
    roles: Roles | None,
) -> StageEvaluation:
    """Measure a policy on the held-out prompts and keep its answers."""
    recipe = context.recipe
    announce(f"{stage}: measuring on held-out prompts")
    chosen = choose_held_out(context.data.held_out_prompts, recipe.evaluation)
    sampling = recipe.evaluation.sampling
    prompts, _ = encode_prompts(tokenizer, chosen, sampling.max_prompt_tokens)

    def score(shards: list[ObjectRef]) -> tuple[Float32Array, Float32Array]:
        assert roles is not None
        return roles.reward_scores(shards)

    with _judge(context) as (name, judge):
        evaluation, samples = evaluate(
            prompts,
            sample,
            sampling,
            version,
            step,
            recipe.seed,
            tokenizer,
            name,
            judge,
            score if roles else None,
            make_mix(recipe.ppo.mix),
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
        critic=settings.critic.path or helpfulness,
        reference=settings.reference.path or policy,
        safety=settings.safety.path or str(run.model_dir("reward_safety")),
        helpfulness=helpfulness,
    )


def _validation(
    context: RunContext, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedPrompt], int]:
    early_stop = context.recipe.ppo.early_stop
    if early_stop is None:
        return [], 0
    chosen = context.data.validation_prompts[: early_stop.prompts]
    return encode_prompts(tokenizer, chosen, context.recipe.ppo.sampling.max_prompt_tokens)


def _is_measured(context: RunContext, stage: str) -> bool:
    result = context.run.stage_result(stage)
    return result is not None and result["evaluation"] is not None


def _max_model_len(context: RunContext) -> int:
    both = (context.recipe.ppo.sampling, context.recipe.evaluation.sampling)
    return max(one.max_prompt_tokens + one.max_response_tokens for one in both)


def _scores_of(judge: ActorHandle, rollouts: Sequence[Rollout]) -> Float32Array:
    scores: Any = ray.get(judge.score.remote(rollouts))
    return np.asarray(scores, dtype=np.float32)


@contextmanager
def _judge(context: RunContext) -> Iterator[tuple[str | None, Judge | None]]:
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
            "policy_path": context.sft_model(),
        }
        (judge,) = placement.start("judge", RewardModel, [arguments], {})
        try:
            yield settings.path, model_judge(partial(_scores_of, judge))
        finally:
            placement.release()
