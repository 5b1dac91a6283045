"""PPO in a run: start all roles, train, keep the best."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest

from transformers import PreTrainedTokenizerBase

from rayward.actors.models.loading import load_tokenizer, reads_tokens_of, speak_alike
from rayward.actors.roles import ModelPaths, Roles
from rayward.cluster.atomic import new_directory
from rayward.cluster.config.ppo import PPOSettings, SamplingSettings
from rayward.cluster.errors import InputError
from rayward.cluster.progress import announce
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.seeds import stage_seed
from rayward.cluster.types import Prompt
from rayward.pipelines.ppo.loop import PPO
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.encoding import EncodedPrompt, encode_prompts
from rayward.pipelines.run.prompts import training_prompts


def run_ppo(context: RunContext, stage: PlannedStage) -> None:
    """PPO with the two reward models, from the policy before it."""
    began = time.perf_counter()
    recipe, run, settings = context.recipe, context.run, context.recipe.ppo
    context.sessions.close()
    context.claim_checkpoints(stage.id)
    seed = stage_seed(recipe.seed, stage.id)
    paths = model_paths(context, stage)
    tokenizer = load_tokenizer(paths.policy, "ppo.policy.path")
    _require_same_tokens(tokenizer, paths)
    asked = training_prompts(context, stage)
    prompts, too_long = _encode(tokenizer, asked, settings.sampling)
    validation, validation_too_long = _validation(context, tokenizer)
    announce(f"{stage.id}: starting policy, critic, reference, reward models and rollout workers")
    roles = Roles(settings, paths, max_model_len(settings), int(tokenizer.eos_token_id), seed)
    started = time.perf_counter()
    try:
        ppo = PPO(
            stage.id,
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
        trained = ppo.train()
        shutil.rmtree(run.model_dir(stage.id), ignore_errors=True)
        with new_directory(run.model_dir(stage.id)) as directory:
            roles.export(directory)
        parents = {role: path for role, path in asdict(paths).items() if path is not None}
        context.record_model(stage.id, parents)
    finally:
        roles.release()
    context.complete(
        stage.id,
        {
            "seconds": time.perf_counter() - began,
            "startup_seconds": started - began,
            "prompts": len(prompts),
            "prompts_too_long": too_long,
            "validation_prompts": len(validation),
            "validation_prompts_too_long": validation_too_long,
            **asdict(trained),
        },
    )


def model_paths(context: RunContext, stage: PlannedStage) -> ModelPaths:
    """Which model each role starts from: the recipe's own, else what the stages made."""
    settings: PPOSettings = context.recipe.ppo
    policy = settings.policy.path or context.policy(stage.policy)
    reward_models = context.reward_models(stage)
    helpfulness = reward_models["helpfulness"]
    return ModelPaths(
        policy=policy,
        critic=_critic_start(settings, policy, helpfulness) if settings.has_critic else None,
        reference=settings.reference.path or policy,
        safety=reward_models["safety"],
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


def max_model_len(settings: PPOSettings) -> int:
    """Longest prompt plus answer that PPO samples, in tokens."""
    return settings.sampling.max_prompt_tokens + settings.sampling.max_response_tokens


def _encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], sampling: SamplingSettings
) -> tuple[list[EncodedPrompt], int]:
    field = "ppo.sampling.max_prompt_tokens"
    return encode_prompts(tokenizer, prompts, sampling.max_prompt_tokens, field)


def _validation(
    context: RunContext, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedPrompt], int]:
    """Held-out prompts for early stopping: as many adversarial ones as others, while they last."""
    settings = context.recipe.ppo
    if settings.early_stop is None:
        return [], 0
    encoded, too_long = _encode(tokenizer, context.data.validation_prompts, settings.sampling)
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
