"""Loading, running and saving transformers models. Dropout is off in all of them."""

import hashlib
import inspect
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from rayward.actors.models.kinds import (
    CAUSAL_LM,
    CLASSIFIER,
    SCALAR,
    UNLOADABLE,
    first_line,
    is_classifier,
    load_config,
    require_causal_lm,
    require_classifier,
    require_directory_or_id,
)
from rayward.cluster.config.roles import Precision
from rayward.cluster.errors import InputError

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_HEAD_STD = 0.02  # the standard deviation of a new regression head


def load_tokenizer(
    path: str, field: str = "model.path", for_chat: bool = True
) -> PreTrainedTokenizerBase:
    """Load a policy's tokenizer.

    Args:
        for_chat: whether it must be able to hold a conversation.

    Raises:
        InputError: names `field`; there is no tokenizer, or it has no end token, or no chat
            template where one is needed.
    """
    tokenizer = read_tokenizer(path, field)
    if for_chat and tokenizer.chat_template is None:
        raise InputError(field, path, "a model whose tokenizer has a chat template")
    if tokenizer.eos_token_id is None:
        raise InputError(field, path, "a model whose tokenizer has an end token")
    return tokenizer


def read_tokenizer(path: str, field: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer of any kind.

    Raises:
        InputError: names `field`; there is no tokenizer.
    """
    require_directory_or_id(path, field, CAUSAL_LM)
    try:
        return AutoTokenizer.from_pretrained(path)
    except UNLOADABLE as error:
        expected = f"a model directory with a readable tokenizer ({first_line(error)})"
        raise InputError(field, path, expected) from error


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
    config = load_config(path, field, CAUSAL_LM)
    require_causal_lm(config, path, field)
    model, missing = _load(AutoModelForCausalLM, path, config, precision, field, CAUSAL_LM)
    if missing:
        raise InputError(field, path, f"{CAUSAL_LM}; it lacks the weights {missing[0]}")
    return model


def load_reward_model(path: str, precision: Precision, field: str) -> PreTrainedModel:
    """Load a sequence classifier with one output, decoder or not, as it is.

    Raises:
        InputError: names `field`; `path` is not a whole classifier, or has more than one output.
    """
    config = load_config(path, field, CLASSIFIER)
    require_classifier(config, path, field)
    loader = AutoModelForSequenceClassification
    model, missing = _load(loader, path, config, precision, field, CLASSIFIER)
    if missing:
        raise InputError(field, path, f"{CLASSIFIER}; it lacks the weights {missing[0]}")
    return model


def load_scalar_model(
    path: str, precision: Precision, seed: int, field: str = "model.path"
) -> PreTrainedModel:
    """Load a decoder with one output per token: a critic, or a reward model to be trained.

    A causal language model gets a regression head in place of its language-model head
    (Llama 2, section 3.2.2), drawn from `seed`; a one-output classifier is loaded as it is.

    Raises:
        InputError: names `field`; `path` is neither, or has more than one output.
    """
    config = load_config(path, field, SCALAR)
    is_new = not is_classifier(config)
    if is_new:
        require_causal_lm(config, path, field)
        config.num_labels = 1
        config.problem_type = "regression"
    else:
        require_classifier(config, path, field)
    loader = AutoModelForSequenceClassification
    model, missing = _load(loader, path, config, precision, field, SCALAR)
    name = token_head(model)
    if name is None:
        raise InputError(field, path, f"{SCALAR}; {config.model_type} has no head for every token")
    head = model.get_submodule(name)
    assert isinstance(head, nn.Linear)
    new = {f"{name}.{part}" for part, _ in head.named_parameters()} if is_new else set()
    if extra := sorted(set(missing) - new):
        raise InputError(field, path, f"{SCALAR}; it lacks the weights {extra[0]}")
    if is_new:
        _draw_head(head, seed)
    return model


def token_head(model: PreTrainedModel) -> str | None:
    """The name of the linear head on a decoder's last hidden states; None for other models.

    transformers' decoders have this head and nothing else beside the base model, whatever its
    name. Encoders pool before it, in the base model or in a layer of their own.
    """
    base = model.base_model
    own = [
        name
        for name, child in model.named_children()
        if child is not base and not isinstance(child, nn.Dropout)
    ]
    if type(model.config) not in AutoModelForCausalLM._model_mapping:
        return None
    if len(own) != 1 or getattr(base, "pooler", None) is not None:
        return None
    return own[0] if isinstance(model.get_submodule(own[0]), nn.Linear) else None


def reads_tokens_of(path: str, tokenizer: PreTrainedTokenizerBase, field: str) -> bool:
    """Whether a scalar model can be the critic of a policy with this tokenizer.

    It must be a decoder, which has a value for every token, and speak the policy's tokens. Its
    weights are not loaded.

    Raises:
        InputError: names `field`; there is no model at `path`.
    """
    config = load_config(path, field, SCALAR)
    return is_decoder(config) and speak_alike(read_tokenizer(path, field), tokenizer)


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration has, or can be given, a head for every token."""
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        return False
    return token_head(classifier_without_weights(config)) is not None


def classifier_without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """A sequence classifier's layers, which take no memory."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert isinstance(model, PreTrainedModel)
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
    return _head(model)(_hidden(model, input_ids, attention_mask)).squeeze(-1).float()


def sequence_scores(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    head_rows: int | None = None,
) -> Tensor:
    """One score per row, by a model of `load_scalar_model` or `load_reward_model`.

    A decoder's is its head's output at the row's last attended token: taken from the mask and
    never from the pad id, which may equal the end token's id. Other classifiers pool in their own
    way. Arguments as for `token_values`; every row has a token.

    Args:
        head_rows: a decoder's head is always given so many rows at once, because a product of few
            rows has other last bits than one of many. None: as many as there are.

    Returns:
        float32 [B], logits.
    """
    if token_head(model) is None:
        # FNet, for one, knows no mask; rows that it reads must not be padded.
        known = "attention_mask" in inspect.signature(model.forward).parameters
        masked = {"attention_mask": attention_mask} if known else {}
        logits: Tensor = model(input_ids, **masked).logits
        return logits.squeeze(-1).float()
    hidden = _hidden(model, input_ids, attention_mask)
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    last = attention_mask.sum(dim=1) - 1
    return _head_scores(model, hidden[rows, last], head_rows)


@torch.no_grad()
def ignores_padding(model: PreTrainedModel) -> bool:
    """Whether a row's score stays as it is when padding is put behind the row.

    Decoders with a head for every token ignore it by construction. Others are tried: what is
    under the mask must not change a bit, nor its length more than rounding does.
    """
    if token_head(model) is not None:
        return True
    if model.config.is_encoder_decoder:
        return False  # pools at end tokens, of which all rows of a batch must have equally many
    vocabulary = model.config.get_text_config().vocab_size
    row = torch.arange(vocabulary - 1, vocabulary - 9, -1, device=model.device)
    mask = torch.ones(1, 16, dtype=torch.int64, device=model.device)
    mask[:, len(row) :] = 0
    alone = sequence_scores(model, row[None], mask[:, : len(row)])
    padded = [
        sequence_scores(model, torch.cat([row, row.new_full((len(row),), fill)])[None], mask)
        for fill in (0, vocabulary // 2)
    ]
    tolerance = torch.finfo(model.dtype).eps ** 0.5
    return torch.equal(*padded) and torch.allclose(alone, padded[0], tolerance, tolerance)


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


def _head(model: PreTrainedModel) -> nn.Module:
    name = token_head(model)
    assert name is not None
    return model.get_submodule(name)


def _head_scores(model: PreTrainedModel, pooled: Tensor, head_rows: int | None) -> Tensor:
    """The head's output for each row of [B, hidden]: float32 [B]."""
    head = _head(model)
    if head_rows is None:
        return head(pooled).squeeze(-1).float()
    missing = -len(pooled) % head_rows
    whole = nn.functional.pad(pooled, (0, 0, 0, missing))
    scores = torch.cat([head(block) for block in whole.split(head_rows)])
    return scores[: len(pooled)].squeeze(-1).float()


def _hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    output = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    hidden = output.last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden


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
    except UNLOADABLE as error:
        raise InputError(field, path, f"{expected} ({first_line(error)})") from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, sorted(info["missing_keys"])


def _draw_head(head: nn.Linear, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(head.weight.shape, generator=generator) * _HEAD_STD
    with torch.no_grad():
        head.weight.copy_(drawn)
