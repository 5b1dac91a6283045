"""What PPO asks of a recipe and its models before anything is started."""

from transformers import PreTrainedTokenizerBase

from rayward.actors.models.kinds import (
    SCALAR,
    is_classifier,
    load_config,
    positions,
    require_causal_lm,
    require_classifier,
)
from rayward.actors.models.loading import is_decoder, load_tokenizer, speak_alike
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.errors import InputError
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.models import (
    KnownModels,
    asked_of_policy,
    causal_lm,
    require_room,
    require_same,
    require_weights,
)


def check_settings(context: RunContext) -> None:
    """There are prompts, and settings of roles that go together.

    Raises:
        InputError: names the setting or the table.
    """
    settings, data = context.recipe.ppo, context.data
    data.require("prompts", len(data.prompts))
    if settings.early_stop is not None and not data.validation_prompts:
        raise InputError(
            "ppo.early_stop", "no validation prompts", "null, or data with validation prompts"
        )
    _check_groups(settings)
    _check_weight_sync(settings)


def check_learners(context: RunContext, known: KnownModels) -> KnownModels:
    """Policy, reference and critic, where they have paths of their own.

    Raises:
        InputError: one is not a model of its kind, or does not read the policy's tokens.
    """
    settings, tokenizer = context.recipe.ppo, known.tokenizer
    path, field = settings.policy.path, "ppo.policy.path"
    if path is not None:
        config, tokenizer = causal_lm(path, field)
        for asked in asked_of_policy(context):
            require_room(asked.sampling, asked.section, positions(config), f"{field}'s")
    path, field = settings.reference.path, "ppo.reference.path"
    if path is not None:
        config, own = causal_lm(path, field)
        require_room(settings.sampling, "ppo", positions(config), f"{field}'s")
        require_same(tokenizer is None or speak_alike(own, tokenizer), path, field)
    if settings.has_critic and settings.critic.path is not None:
        _check_critic(settings, settings.critic.path, tokenizer)
    if settings.policy.path is None:
        return known
    return KnownModels("ppo.policy.path", settings.policy.path, tokenizer)


def _check_critic(
    settings: PPOSettings, path: str, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    field = "ppo.critic.path"
    config = load_config(path, field, SCALAR)
    if is_classifier(config):
        require_classifier(config, path, field)
    else:
        require_causal_lm(config, path, field)
    if not is_decoder(config):
        expected = f"{SCALAR}; {config.model_type} has no head for every token"
        raise InputError(field, path, expected)
    require_weights(path, field, SCALAR)
    own = load_tokenizer(path, field)
    require_same(tokenizer is None or speak_alike(own, tokenizer), path, field)
    require_room(settings.sampling, "ppo", positions(config), f"{field}'s")


def _check_groups(settings: PPOSettings) -> None:
    for group in settings.colocate:
        if "critic" in group and not settings.has_critic:
            raise InputError(
                "ppo.colocate",
                group,
                f"roles without critic: {settings.advantage_estimator} has none",
            )
        labels = [getattr(settings, role).resources.labels for role in group]
        if any(one != labels[0] for one in labels):
            raise InputError("ppo.colocate", group, "roles with the same resources.labels")


def _check_weight_sync(settings: PPOSettings) -> None:
    field, backend = "ppo.rollout.weight_sync.backend", settings.rollout.weight_sync.backend
    if backend == "object_store":
        return
    for role in ("policy", "rollout"):
        if not getattr(settings, role).resources.gpus:
            raise InputError(
                field, backend, f"object_store, because ppo.{role}.resources.gpus is 0"
            )
    together = any({"policy", "rollout"} <= set(group) for group in settings.colocate)
    if backend == "ipc" and not together:
        raise InputError(field, backend, "nccl, or policy and rollout in one group of ppo.colocate")
