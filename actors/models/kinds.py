"""What kind of model a directory or hub id holds, by its configuration alone."""

import re
from pathlib import Path

from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from rayward.cluster.errors import InputError

CAUSAL_LM = "a transformers directory or hub id of a causal language model"
CLASSIFIER = "a transformers directory or hub id of a sequence classifier with one output"
SCALAR = (
    "a transformers directory or hub id of a decoder: a causal language model, "
    "or a sequence classifier with one output"
)
UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
# Checkpoints of other kinds load as causal models too, with weights that mean nothing there.
_OTHER_KIND = re.compile(r"For(?!CausalLM|ConditionalGeneration)[A-Z]\w*$")

ADAPTER_CONFIG = "adapter_config.json"
"""What tells a PEFT adapter's directory from a whole model's."""


def load_config(path: str, field: str, expected: str) -> PretrainedConfig:
    """Load a model's configuration, with all dropout taken out.

    Raises:
        InputError: names `field` and says what was `expected` there.
    """
    require_directory_or_id(path, field, expected)
    try:
        config = AutoConfig.from_pretrained(path)
    except UNLOADABLE as error:
        raise InputError(field, path, f"{expected} ({first_line(error)})") from error
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def is_classifier(config: PretrainedConfig) -> bool:
    """Whether the checkpoint was saved as a sequence classifier."""
    return any("SequenceClassification" in name for name in config.architectures or [])


def require_classifier(config: PretrainedConfig, path: str, field: str) -> None:
    """Refuse what is no sequence classifier with one output.

    Raises:
        InputError: names `field`.
    """
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise InputError(field, path, f"{CLASSIFIER}; {config.model_type} is none")
    if config.architectures and not is_classifier(config):
        raise InputError(field, path, f"{CLASSIFIER}; it is a {config.architectures[0]}")
    if config.num_labels != 1:
        raise InputError(field, path, f"a model with one output; it has {config.num_labels}")


def require_causal_lm(config: PretrainedConfig, path: str, field: str) -> None:
    """Refuse what is no causal language model.

    Raises:
        InputError: names `field`.
    """
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise InputError(field, path, f"{CAUSAL_LM}; {config.model_type} is none")
    if config.architectures and all(_OTHER_KIND.search(name) for name in config.architectures):
        raise InputError(field, path, f"{CAUSAL_LM}; it is a {config.architectures[0]}")


def positions(config: PretrainedConfig) -> int | None:
    """The longest sequence that the model was made for, in tokens; None: no limit is known."""
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    return room if isinstance(room, int) and room > 0 else None


def require_directory_or_id(path: str, field: str, expected: str) -> None:
    """Refuse what is plainly neither, before a download is tried.

    Raises:
        InputError: names `field` and says what was `expected` there.
    """
    directory = Path(path)
    if (directory / ADAPTER_CONFIG).is_file():
        raise InputError(
            field, path, f"{expected}; it is a PEFT adapter: merge it into its base model first"
        )
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise InputError(field, path, f"{expected}; it has no config.json")
    elif directory.exists() or directory.is_absolute() or path.startswith("."):
        raise InputError(field, path, f"{expected}; there is no such directory")


def first_line(error: BaseException) -> str:
    """What went wrong, for a message of one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
