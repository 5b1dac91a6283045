"""Loading, running and saving transformers models. Dropout is off in all of them."""

import hashlib
import json
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from cluster.config.roles import Precision
from cluster.errors import InputError

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_CAUSAL_LM = "a transformers directory or hub id of a causal language model"
_SCALAR = "a transformers directory or hub id of a causal language model or a one-output classifier"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
_HEAD_STD = 0.02  # the standard deviation of a new regression head
_UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def load_tokenizer(path: str, field: str = "model.path") -> PreTrainedTokenizerBase:
    """Load a tokenizer that can hold a conversation.

    Raises:
        InputError: names `field`; there is no tokenizer, or it has no chat template or end token.
    """
    _require_directory_or_id(path, field, _CAUSAL_LM)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except _UNLOADABLE as error:
        expected = f"a model directory with a readable tokenizer ({_first_line(error)})"
        raise InputError(field, path, expected) from error
    if tokenizer.chat_template is None:
        raise InputError(field, path, "a model whose tokenizer has a chat template")
    if tokenizer.eos_token_id is None:
        raise InputError(field, path, "a model whose tokenizer has an end token")
    return tokenizer


def speak_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give every conversation the same ids."""
    return bool(
        one.get_vocab() == other.get_vocab()
        and one.chat_template == other.chat_template
        and one.eos_token_id == other.eos_token_id
    )


def load_causal_lm(path: str, precision: Precision, field: str = "model.path") -> PreTrainedModel:
    """Load a causal language model.

    Raises:
        InputError: names `field`; `path` is not a whole causal language model.
    """
    config = _load_config(path, field, _CAUSAL_LM)
    model, missing = _load(AutoModelForCausalLM, path, config, precision, field, _CAUSAL_LM)
    if missing:
        raise InputError(field, path, f"{_CAUSAL_LM}; it lacks the weights {missing[0]}")
    return model


def check_model(path: str, kind: Literal["causal_lm", "scalar"], field: str) -> None:
    """Find out whether a model can be loaded, without loading its weights.

    Raises:
        InputError: names `field`; `path` is no model of the kind, or a directory without weights.
    """
    expected, loader = (
        (_CAUSAL_LM, AutoModelForCausalLM)
        if kind == "causal_lm"
        else (_SCALAR, AutoModelForSequenceClassification)
    )
    config = _load_config(path, field, expected)
    if type(config) not in loader._model_mapping:
        raise InputError(field, path, f"{expected}; {config.model_type} is none")
    if kind == "scalar":
        _require_one_output(config, path, field)
    directory = Path(path)
    if directory.is_dir() and not any(any(directory.glob(pattern)) for pattern in _WEIGHTS):
        raise InputError(field, path, f"{expected}; it has no weights")
    load_tokenizer(path, field)


def load_scalar_model(
    path: str, precision: Precision, seed: int, field: str = "model.path"
) -> PreTrainedModel:
    """Load a model with one output per token: a reward model or a critic.

    A causal language model gets a regression head in place of its language-model head
    (Llama 2, section 3.2.2), drawn from `seed`; a one-output classifier is loaded as it is.

    Raises:
        InputError: names `field`; `path` is neither, or has more than one output.
    """
    config = _load_config(path, field, _SCALAR)
    is_classifier = _require_one_output(config, path, field)
    config.num_labels = 1
    config.problem_type = "regression"
    loader = AutoModelForSequenceClassification
    model, missing = _load(loader, path, config, precision, field, _SCALAR)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise InputError(
            field, path, f"a decoder with a linear score head; {config.model_type} has none"
        )
    expected_missing = set() if is_classifier else {"score.weight"}
    if extra := sorted(set(missing) - expected_missing):
        raise InputError(field, path, f"{_SCALAR}; it lacks the weights {extra[0]}")
    if not is_classifier:
        _draw_head(head, seed)
    return model


def token_values(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The scalar head at every position.

    Args:
        model: as `load_scalar_model` returns it.
        input_ids: int64 [B, L], right padded with any id.
        attention_mask: int64 [B, L], 1 on tokens, 0 on padding.

    Returns:
        float32 [B, L]; entries under padding mean nothing.
    """
    return (
        model.get_submodule("score")(_hidden(model, input_ids, attention_mask)).squeeze(-1).float()
    )


def sequence_scores(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The scalar head at each row's last attended token.

    The row's end is taken from the mask and never from the pad id, which may equal the end
    token's id. Arguments as for `token_values`; every row has a token.

    Returns:
        float32 [B], logits.
    """
    hidden = _hidden(model, input_ids, attention_mask)
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    last = attention_mask.sum(dim=1) - 1
    return model.get_submodule("score")(hidden[rows, last]).squeeze(-1).float()


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write an ordinary transformers directory: config, safetensors, tokenizer.

    Args:
        weights: what to write in place of the model's own weights, which ZeRO-3 leaves
            partitioned.
    """
    model.save_pretrained(directory, state_dict=weights)
    tokenizer.save_pretrained(directory)


def weights_digest(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, over the names, dtypes, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    output = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    hidden = output.last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden


def _require_directory_or_id(path: str, field: str, expected: str) -> None:
    """Refuse what is plainly neither, before a download is tried."""
    directory = Path(path)
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise InputError(field, path, f"{expected}; it has no config.json")
    elif directory.exists() or directory.is_absolute() or path.startswith("."):
        raise InputError(field, path, f"{expected}; there is no such directory")


def _load_config(path: str, field: str, expected: str) -> PretrainedConfig:
    _require_directory_or_id(path, field, expected)
    try:
        config = AutoConfig.from_pretrained(path)
    except _UNLOADABLE as error:
        raise InputError(field, path, f"{expected} ({_first_line(error)})") from error
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _require_one_output(config: PretrainedConfig, path: str, field: str) -> bool:
    """Refuse a classifier with more outputs; returns whether it is a classifier at all."""
    is_classifier = any("SequenceClassification" in name for name in config.architectures or [])
    if is_classifier and config.num_labels != 1:
        raise InputError(field, path, f"a model with one output; it has {config.num_labels}")
    return is_classifier


def _load(
    loader: type[_BaseAutoModelClass],
    path: str,
    config: PretrainedConfig,
    precision: Precision,
    field: str,
    expected: str,
) -> tuple[PreTrainedModel, list[str]]:
    try:
        model, info = loader.from_pretrained(
            path, config=config, dtype=DTYPES[precision], output_loading_info=True
        )
    except _UNLOADABLE as error:
        raise InputError(field, path, f"{expected} ({_first_line(error)})") from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, sorted(info["missing_keys"])


def _draw_head(head: nn.Linear, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(head.weight.shape, generator=generator) * _HEAD_STD
    with torch.no_grad():
        head.weight.copy_(drawn)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
