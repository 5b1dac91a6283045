"""Models and tokenizers of a recipe, asked before any weights are loaded.

Text that a model cannot read is found here as far as it can be: prompts that are known now, by
the tokenizers that are known now.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from actors.chat import encode_answered, encode_prompt
from actors.label_judge import check_label_judge
from actors.model_kinds import (
    CAUSAL_LM,
    CLASSIFIER,
    SCALAR,
    is_classifier,
    load_config,
    positions,
    require_causal_lm,
    require_classifier,
)
from actors.models import (
    classifier_without_weights,
    is_decoder,
    load_tokenizer,
    speak_alike,
)
from actors.reward_model import RewardName, load_reward_tokenizer, longest_input, section_of
from cluster.config.evaluation import answer_judges, label_judges
from cluster.config.ppo import SamplingSettings
from cluster.config.recipe import Recipe
from cluster.config.roles import RewardRole
from cluster.config.supervised import SupervisedSettings
from cluster.errors import InputError
from cluster.types import Prompt
from pipelines.context import RunContext
from pipelines.preprompts import load_preprompts, with_preprompt
from pipelines.prompt_stream import encode_prompts

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")


def check_models(context: RunContext) -> None:
    """Look at every model that the recipe names.

    Raises:
        InputError: a path is not a model of its kind, or prompts and answers do not fit a model.
    """
    recipe = context.recipe
    sections = [(section, sampling) for section, sampling, _ in _asked(context)]
    tokenizer = None
    if recipe.model.path is not None:
        # A base model has no chat template, and the benchmarks need none.
        for_chat = recipe.stages != ["evaluation"] or bool(context.data.held_out_prompts)
        config, tokenizer = _causal_lm(recipe.model.path, "model.path", for_chat)
        room = positions(config)
        if {"reward_safety", "reward_helpfulness"} & set(recipe.stages) and not is_decoder(config):
            raise InputError(
                "model.path",
                recipe.model.path,
                f"{SCALAR}; {config.model_type} has no head for every token",
            )
    else:
        assert recipe.model.make is not None
        room = recipe.model.make.max_position_embeddings
    for field, fit in _fits(recipe).items():
        if room is not None and fit.max_tokens > room:
            raise InputError(
                f"{field}.max_tokens", fit.max_tokens, f"at most the start model's {room} positions"
            )
    for section, sampling in sections:
        if section == "evaluation" and not context.data.held_out_prompts:
            continue
        _require_room(sampling, section, room, "the model's")
    if "ppo" in recipe.stages:
        tokenizer = _check_learners(context, tokenizer)
    if tokenizer is not None:
        _require_prompts(context, tokenizer)
    if recipe.gates is not None and recipe.gates.previous is not None:
        previous, _ = _causal_lm(recipe.gates.previous, "gates.previous")
        sampling = recipe.evaluation.sampling
        _require_room(sampling, "evaluation", positions(previous), "gates.previous's")
    for field, judge in label_judges(recipe.evaluation).items():
        check_label_judge(judge, field)
    for field, asked in answer_judges(recipe.evaluation).items():
        _causal_lm(asked.path, f"{field}.path", for_chat=False)
    if "context_distillation" in recipe.stages and tokenizer is not None:
        _require_system_role(context, tokenizer)
    attacker = recipe.red_teaming.attacker
    if "red_teaming" in recipe.stages and attacker is not None:
        config, _ = _causal_lm(attacker.path, "red_teaming.attacker.path")
        section = "red_teaming.attacker"
        _require_room(attacker.sampling, section, positions(config), "the attacker's")
    for role, settings in _reward_roles(context):
        _check_reward_model(context, role, settings, tokenizer)


def _fits(recipe: Recipe) -> dict[str, SupervisedSettings]:
    """The settings of every fit of the recipe's stages, by their place."""
    found: dict[str, SupervisedSettings] = {}
    for stage in recipe.stages:
        settings = getattr(recipe, stage)
        if isinstance(settings, SupervisedSettings):
            found[stage] = settings
        elif hasattr(settings, "fit"):
            found[f"{stage}.fit"] = settings.fit
    return found


def _require_system_role(context: RunContext, tokenizer: PreTrainedTokenizerBase) -> None:
    """A preprompt is a system message, which some chat templates refuse."""
    settings = context.recipe.context_distillation
    preprompts = load_preprompts(settings.preprompts, context.data.oracle is not None)
    (preprompt, *_) = [*preprompts.generic, *preprompts.by_adjectives]
    for prompt in _one_of_each([one for one in context.data.prompts if one.adversarial]):
        try:
            encode_prompt(tokenizer, with_preprompt(prompt, preprompt).messages)
        except InputError as error:
            expected = f"a chat template that takes a system message ({error.expected})"
            raise InputError(*_policy_setting(context.recipe), expected) from error


def _causal_lm(
    path: str, field: str, for_chat: bool = True
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    config = load_config(path, field, CAUSAL_LM)
    require_causal_lm(config, path, field)
    _require_weights(path, field, CAUSAL_LM)
    return config, load_tokenizer(path, field, for_chat)


def _require_weights(path: str, field: str, expected: str) -> None:
    directory = Path(path)
    if directory.is_dir() and not any(any(directory.glob(pattern)) for pattern in _WEIGHTS):
        raise InputError(field, path, f"{expected}; it has no weights")


def _require_room(sampling: SamplingSettings, section: str, room: int | None, whose: str) -> None:
    tokens = sampling.max_prompt_tokens + sampling.max_response_tokens
    if room is not None and tokens > room:
        raise InputError(
            f"{section}.sampling.max_prompt_tokens + max_response_tokens",
            tokens,
            f"at most {whose} {room} positions",
        )


def _check_learners(
    context: RunContext, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase | None:
    """Policy, reference and critic, where they have paths of their own.

    Returns:
        The policy's tokenizer, where it is known already.
    """
    settings = context.recipe.ppo
    for role in ("policy", "reference"):
        path, field = getattr(settings, role).path, f"ppo.{role}.path"
        if path is None:
            continue
        config, own = _causal_lm(path, field)
        if role == "policy":
            tokenizer = own
            for section, sampling, _ in _asked(context):
                _require_room(sampling, section, positions(config), f"{field}'s")
        else:
            _require_room(settings.sampling, "ppo", positions(config), f"{field}'s")
            _require_same(tokenizer is None or speak_alike(own, tokenizer), path, field)
    path, field = settings.critic.path, "ppo.critic.path"
    if path is not None and settings.has_critic:
        config = load_config(path, field, SCALAR)
        if is_classifier(config):
            require_classifier(config, path, field)
        else:
            require_causal_lm(config, path, field)
        if not is_decoder(config):
            expected = f"{SCALAR}; {config.model_type} has no head for every token"
            raise InputError(field, path, expected)
        _require_weights(path, field, SCALAR)
        own = load_tokenizer(path, field)
        _require_same(tokenizer is None or speak_alike(own, tokenizer), path, field)
        _require_room(settings.sampling, "ppo", positions(config), f"{field}'s")
    return tokenizer


def _require_same(is_same: bool, path: str, field: str) -> None:
    if not is_same:
        raise InputError(field, path, "a model with the policy's tokenizer and chat template")


def _require_prompts(context: RunContext, tokenizer: PreTrainedTokenizerBase) -> None:
    """The policy's template takes the prompts, and of each kind there is one that is not too long.

    Raises:
        InputError: the template does not; or as `encode_prompts`.
    """
    for section, sampling, prompts in _asked(context):
        for prompt in _one_of_each(prompts):
            try:
                encode_prompt(tokenizer, prompt.messages)
            except InputError as error:
                raise _refused(prompt, error, *_policy_setting(context.recipe)) from error
        most = sampling.max_prompt_tokens
        if not any(len(encode_prompt(tokenizer, one.messages)) <= most for one in prompts):
            encode_prompts(tokenizer, prompts, most, f"{section}.sampling.max_prompt_tokens")


def _asked(context: RunContext) -> list[tuple[str, SamplingSettings, Sequence[Prompt]]]:
    """What the policy is asked: the section of the settings, and the prompts."""
    recipe, data = context.recipe, context.data
    asked: list[tuple[str, SamplingSettings, Sequence[Prompt]]] = []
    if "rejection_sampling" in recipe.stages:
        asked += [("rejection_sampling", recipe.rejection_sampling.sampling, data.prompts)]
    if "ppo" in recipe.stages:
        asked += [("ppo", recipe.ppo.sampling, data.prompts)]
        if recipe.ppo.early_stop is not None:
            asked += [("ppo", recipe.ppo.sampling, data.validation_prompts)]
    adversarial = [prompt for prompt in data.prompts if prompt.adversarial]
    if "red_teaming" in recipe.stages:
        seeds = data.seed_prompts or adversarial
        asked += [("red_teaming", recipe.red_teaming.sampling, seeds)]
    if "context_distillation" in recipe.stages:
        asked += [("context_distillation", recipe.context_distillation.sampling, adversarial)]
    return [*asked, ("evaluation", recipe.evaluation.sampling, data.held_out_prompts)]


def _reward_roles(context: RunContext) -> list[tuple[RewardName, RewardRole]]:
    """The reward models that the recipe names, and the judge where there is no oracle."""
    recipe, judge = context.recipe, context.recipe.evaluation.judge
    roles: list[tuple[RewardName, RewardRole]] = []
    roles += [("safety", recipe.ppo.safety), ("helpfulness", recipe.ppo.helpfulness)]
    if judge is not None and context.data.oracle is None:
        roles += [("judge", judge)]
    return [(role, settings) for role, settings in roles if settings.path is not None]


def _check_reward_model(
    context: RunContext,
    role: RewardName,
    settings: RewardRole,
    policy: PreTrainedTokenizerBase | None,
) -> None:
    path, field = settings.path, f"{section_of(role)}.path"
    assert path is not None
    config = load_config(path, field, CLASSIFIER)
    require_classifier(config, path, field)
    _require_weights(path, field, CLASSIFIER)
    tokenizer = load_reward_tokenizer(role, path, settings)
    asked = [one for one in _asked(context) if role != "judge" or one[0] == "evaluation"]
    if policy is not None and speak_alike(tokenizer, policy):
        for section, sampling, _ in asked:
            _require_room(sampling, section, positions(config), f"{field}'s")
        return
    room = longest_input(classifier_without_weights(config), tokenizer)
    for section, sampling, prompts in asked:
        for prompt in _one_of_each(prompts):
            _require_roles(tokenizer, prompt, field, path)
        if policy is None or room is None:
            continue
        most = sampling.max_prompt_tokens
        over = [
            prompt
            for prompt in prompts
            if len(encode_answered(tokenizer, prompt.messages, "", ended=True)) > room
            and len(encode_prompt(policy, prompt.messages)) <= most
        ]
        if over:
            raise InputError(
                f"{section}.sampling.max_prompt_tokens",
                most,
                f"so few that {field} can read every prompt: {len(over)} of {len(prompts)} are "
                f"longer than its {room} tokens, by its own tokenizer and without an answer",
            )


def _one_of_each(prompts: Sequence[Prompt]) -> list[Prompt]:
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


def _policy_setting(recipe: Recipe) -> tuple[str, str | None]:
    """What the policy's tokenizer comes from, and what it says."""
    own = recipe.ppo.policy.path
    if "ppo" in recipe.stages and own is not None:
        return "ppo.policy.path", own
    return "model.path", recipe.model.path
