"""Models and tokenizers of a recipe, asked before any weights are loaded.

Text that a model cannot read is found here as far as it can be: prompts that are known now, by
the tokenizers that are known now.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rayward.actors.models.kinds import (
    CAUSAL_LM,
    CLASSIFIER,
    SCALAR,
    load_config,
    positions,
    require_causal_lm,
    require_classifier,
)
from rayward.actors.models.loading import (
    classifier_without_weights,
    is_decoder,
    load_tokenizer,
    speak_alike,
)
from rayward.actors.scoring.reward_model import (
    RewardName,
    load_reward_tokenizer,
    longest_input,
    section_of,
)
from rayward.actors.text.chat import encode_answered, encode_prompt
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.roles import RewardRole
from rayward.cluster.errors import InputError
from rayward.cluster.types import AXES, Prompt
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.encoding import encode_prompts
from rayward.pipelines.stage import Asked, all_stages, stages_of

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")


@dataclass(frozen=True)
class KnownModels:
    """What is known of the policy before any stage has run."""

    field: str
    """The setting that names it."""
    path: str | None
    """What that setting says; None where the model is made from the data."""
    tokenizer: PreTrainedTokenizerBase | None
    """None where it is made from the data."""


def check_start(context: RunContext) -> KnownModels:
    """Look at the model that the recipe starts from, and whether what is asked fits it.

    Raises:
        InputError: it is not a causal language model, or prompts, answers or rows do not fit it.
    """
    recipe = context.recipe
    tokenizer = None
    if recipe.model.path is not None:
        # A base model has no chat template, and the benchmarks need none.
        trains = any(stage.makes != "measurements" for stage in stages_of(recipe))
        for_chat = trains or bool(context.data.held_out_prompts)
        config, tokenizer = causal_lm(recipe.model.path, "model.path", for_chat)
        room = positions(config)
        makes_reward_models = any(stage.axis is not None for stage in stages_of(recipe))
        if makes_reward_models and not is_decoder(config):
            raise InputError(
                "model.path",
                recipe.model.path,
                f"{SCALAR}; {config.model_type} has no head for every token",
            )
    else:
        assert recipe.model.make is not None
        room = recipe.model.make.max_position_embeddings
    for stage in stages_of(recipe):
        for field, fit in stage.fits(recipe).items():
            if room is not None and fit.max_tokens > room:
                expected = f"at most the start model's {room} positions"
                raise InputError(f"{field}.max_tokens", fit.max_tokens, expected)
    for asked in asked_of_policy(context):
        if asked.prompts:
            require_room(asked.sampling, asked.section, room, "the model's")
    return KnownModels("model.path", recipe.model.path, tokenizer)


def check_reward_models(context: RunContext, known: KnownModels) -> None:
    """Look at the reward models that the recipe names, and whether they can read what is asked.

    Raises:
        InputError: one is no reward model, or prompts and answers do not fit it.
    """
    asked = asked_of_policy(context)
    for axis in AXES:
        settings = getattr(context.recipe.ppo, axis)
        if settings.path is not None:
            check_reward_model(axis, settings, known, asked)


def asked_of_policy(context: RunContext) -> list[Asked]:
    """What the stages of the recipe, and its measurements, ask the policy."""
    return [asked for stage in all_stages(context.recipe) for asked in stage.asked(context)]


def causal_lm(
    path: str, field: str, for_chat: bool = True
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """The configuration and tokenizer of a causal language model that has weights.

    Raises:
        InputError: it is none.
    """
    config = load_config(path, field, CAUSAL_LM)
    require_causal_lm(config, path, field)
    require_weights(path, field, CAUSAL_LM)
    return config, load_tokenizer(path, field, for_chat)


def require_weights(path: str, field: str, expected: str) -> None:
    """Refuse a directory with a configuration alone."""
    directory = Path(path)
    if directory.is_dir() and not any(any(directory.glob(pattern)) for pattern in _WEIGHTS):
        raise InputError(field, path, f"{expected}; it has no weights")


def require_room(sampling: SamplingSettings, section: str, room: int | None, whose: str) -> None:
    """Refuse prompts and answers that are longer than a model has positions.

    Args:
        sampling: how long both may be.
        section: of the recipe, that has it.
        room: the model's positions; None for any number.
        whose: they are, for the message.
    """
    tokens = sampling.max_prompt_tokens + sampling.max_response_tokens
    if room is not None and tokens > room:
        raise InputError(
            f"{section}.sampling.max_prompt_tokens + max_response_tokens",
            tokens,
            f"at most {whose} {room} positions",
        )


def require_same(is_same: bool, path: str, field: str) -> None:
    """Refuse a model that does not read the policy's token ids."""
    if not is_same:
        raise InputError(field, path, "a model with the policy's tokenizer and chat template")


def require_prompts(context: RunContext, known: KnownModels) -> None:
    """The policy's template takes the prompts, and of each kind there is one that is not too long.

    Raises:
        InputError: the template does not; or as `encode_prompts`.
    """
    tokenizer = known.tokenizer
    if tokenizer is None:
        return
    for asked in asked_of_policy(context):
        for prompt in one_of_each(asked.prompts):
            try:
                encode_prompt(tokenizer, prompt.messages)
            except InputError as error:
                raise _refused(prompt, error, known.field, known.path) from error
        most, field = (
            asked.sampling.max_prompt_tokens,
            f"{asked.section}.sampling.max_prompt_tokens",
        )
        if not any(len(encode_prompt(tokenizer, one.messages)) <= most for one in asked.prompts):
            encode_prompts(tokenizer, asked.prompts, most, field)


def check_reward_model(
    role: RewardName, settings: RewardRole, known: KnownModels, asked: Sequence[Asked]
) -> None:
    """Look at a reward model that has a path.

    Args:
        role: which one it is.
        settings: its section of the recipe.
        known: of the policy.
        asked: what it scores the answers to.

    Raises:
        InputError: it is no reward model, or prompts and answers do not fit it.
    """
    policy = known.tokenizer
    path, field = settings.path, f"{section_of(role)}.path"
    assert path is not None
    config = load_config(path, field, CLASSIFIER)
    require_classifier(config, path, field)
    require_weights(path, field, CLASSIFIER)
    tokenizer = load_reward_tokenizer(role, path, settings)
    if policy is not None and speak_alike(tokenizer, policy):
        for one in asked:
            require_room(one.sampling, one.section, positions(config), f"{field}'s")
        return
    room = longest_input(classifier_without_weights(config), tokenizer)
    for one in asked:
        for prompt in one_of_each(one.prompts):
            _require_roles(tokenizer, prompt, field, path)
        if policy is None or room is None:
            continue
        most = one.sampling.max_prompt_tokens
        over = [
            prompt
            for prompt in one.prompts
            if len(encode_answered(tokenizer, prompt.messages, "", ended=True)) > room
            and len(encode_prompt(policy, prompt.messages)) <= most
        ]
        if over:
            raise InputError(
                f"{one.section}.sampling.max_prompt_tokens",
                most,
                f"so few that {field} can read every prompt: {len(over)} of {len(one.prompts)} are "
                f"longer than its {room} tokens, by its own tokenizer and without an answer",
            )


def one_of_each(prompts: Sequence[Prompt]) -> list[Prompt]:
    """One prompt for each order of roles that there is."""
    return list({tuple(m.role for m in prompt.messages): prompt for prompt in prompts}.values())


def _require_roles(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, field: str, path: str
) -> None:
    try:
        encode_answered(tokenizer, prompt.messages, "", ended=True)
    except InputError as error:
        raise _refused(prompt, error, field, path) from error


def _refused(prompt: Prompt, error: InputError, field: str, path: str | None) -> InputError:
    roles = ", ".join(message.role for message in prompt.messages)
    expected = f"a chat template that takes the data's roles {roles} ({error.expected})"
    return InputError(field, path, expected)
