"""What can be known to be wrong with the models before anything is started."""

from rayward.actors.learning.lora import is_adapter
from rayward.actors.models.kinds import (
    CAUSAL_LM,
    CLASSIFIER,
    load_config,
    require_causal_lm,
    require_classifier,
)
from rayward.actors.models.loading import load_tokenizer
from rayward.actors.scoring.reward_model import load_reward_tokenizer
from rayward.actors.text.chat import require_template
from rayward.cluster.config.serving import ServingSettings
from rayward.cluster.errors import InputError
from rayward.cluster.types import AXES


def check(settings: ServingSettings) -> None:
    """Look at the models.

    Raises:
        InputError: names the setting.
    """
    if settings.policy is not None:
        path = settings.policy.path
        if is_adapter(path):
            raise InputError(
                "policy.path", path, "a whole model; it is a PEFT adapter (save_as: merged)"
            )
        require_causal_lm(load_config(path, "policy.path", CAUSAL_LM), path, "policy.path")
        tokenizer = load_tokenizer(path, "policy.path")
        require_template(tokenizer, "policy.path", path)
    if settings.reward is not None:
        for axis in AXES:
            model = getattr(settings.reward, axis)
            if model is not None:
                field = f"reward.{axis}.path"
                config = load_config(model.path, field, CLASSIFIER)
                require_classifier(config, model.path, field)
                load_reward_tokenizer(axis, model.path, model, f"reward.{axis}")
        if settings.reward.policy is not None:
            load_tokenizer(settings.reward.policy, "reward.policy")
