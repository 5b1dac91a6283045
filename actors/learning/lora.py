"""Low-rank adapters (Hu et al. 2021) through PEFT, and the whole weights that they amount to.

PEFT puts the adapters into the transformers model itself, which stays a `PreTrainedModel` for
DeepSpeed, for the forward pass and for `save_pretrained`:

    q_proj.weight  ->  q_proj.base_layer.weight (frozen), q_proj.lora_A, q_proj.lora_B (trained)

Everybody else reads the model through `whole_weights`: ordinary names, adapters merged in.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.tuners.lora import Linear as AdaptedLinear
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from rayward.actors.models.kinds import ADAPTER_CONFIG
from rayward.actors.models.loading import load_causal_lm, load_tokenizer, save_model
from rayward.cluster.config.roles import LoRASettings
from rayward.cluster.errors import InputError

_NAME = "default"  # of the one adapter, as PEFT's own loaders expect it


@dataclass(frozen=True)
class WholeWeight:
    """One weight of a model under its ordinary name."""

    name: str
    parts: tuple[nn.Parameter, ...]
    """What `value` reads: the weight itself, and then its adapter's. ZeRO-3 may have split them."""
    layer: AdaptedLinear | None
    """The layer whose adapter is merged in; None for a weight without one."""

    @property
    def dtype(self) -> torch.dtype:
        """The weight's own, which merging keeps."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole shape, also where ZeRO-3 has split the weight."""
        return tuple(getattr(self.parts[0], "ds_shape", self.parts[0].shape))

    def value(self) -> Tensor:
        """The whole weight, while its parts are gathered: W, or W + alpha / rank * B A."""
        weight = self.parts[0].detach()
        if self.layer is None:
            return weight
        with torch.no_grad():
            return weight + self.layer.get_delta_weight(_NAME).to(weight.dtype)


def add_adapters(
    model: PreTrainedModel, settings: LoRASettings, seed: int, field: str
) -> LoraConfig:
    """Give linear layers a trainable adapter each and freeze everything else.

    A new adapter changes nothing: B is zero, and A is drawn from `seed`. There is no dropout.

    Args:
        field: the settings' place in the recipe.

    Returns:
        PEFT's settings, which `save_adapter` writes.

    Raises:
        InputError: names `target_modules`; one of them is no linear layer of the model's own.
    """
    if settings.target_modules != "all-linear":
        _require_linear_layers(model, settings.target_modules, f"{field}.target_modules")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # it divides it by the rank
        target_modules=settings.target_modules,
        lora_dropout=0.0,
        # GPT-2 keeps its linear layers transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, _NAME)
    return config


def whole_weights(model: nn.Module) -> list[WholeWeight]:
    """The model's parameters as they would be without adapters, in the model's order."""
    ordinary: dict[str, str] = {}  # the name that PEFT gave -> the ordinary one
    adapted: dict[str, tuple[AdaptedLinear, list[nn.Parameter]]] = {}
    merged: set[str] = set()
    for prefix, layer in model.named_modules():
        if not isinstance(layer, AdaptedLinear):
            continue
        own = {
            f"{prefix}.{name}": parameter
            for name, parameter in layer.named_parameters()
            if not name.startswith("base_layer.")
        }
        merged |= own.keys()
        adapted[f"{prefix}.base_layer.weight"] = (layer, list(own.values()))
        for name, _ in layer.get_base_layer().named_parameters():
            ordinary[f"{prefix}.base_layer.{name}"] = f"{prefix}.{name}"
    whole = []
    for name, parameter in model.named_parameters():
        if name in merged:
            continue
        layer_of, parts = adapted.get(name, (None, []))
        whole.append(WholeWeight(ordinary.get(name, name), (parameter, *parts), layer_of))
    return whole


def adapter_weights(model: nn.Module) -> list[WholeWeight]:
    """The adapters' own weights, under the names that they have in the model."""
    return [
        WholeWeight(name, (parameter,), None)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def save_adapter(
    model: PreTrainedModel,
    config: LoraConfig,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: dict[str, Tensor],
) -> None:
    """Write a PEFT directory: adapter_config.json, adapter_model.safetensors, tokenizer.

    Args:
        config: what `add_adapters` returned.
        base: the model that the adapter belongs to, a transformers directory or hub id.
        weights: those of `adapter_weights`, gathered.
    """
    directory.mkdir(parents=True, exist_ok=True)
    named = get_peft_model_state_dict(model, weights, _NAME, save_embedding_layers=False)
    # The names of a `PeftModel`, in which every loader looks for them.
    named = {f"base_model.model.{name}": tensor for name, tensor in named.items()}
    save_file(named, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    written = copy(config)
    written.base_model_name_or_path = base
    written.inference_mode = True
    written.target_modules = sorted(config.target_modules or ())
    written.save_pretrained(str(directory))
    tokenizer.save_pretrained(directory)


def is_adapter(path: str) -> bool:
    """Whether this is a PEFT directory, and no whole model."""
    return (Path(path) / ADAPTER_CONFIG).is_file()


def merge_adapter(path: str, target: Path) -> None:
    """Write the whole model that a PEFT directory amounts to, as a transformers directory.

    Raises:
        InputError: its base model cannot be loaded.
    """
    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    adapted = PeftModel.from_pretrained(load_causal_lm(str(base), "float32", path), path)
    merged: PreTrainedModel = adapted.merge_and_unload()
    save_model(merged, load_tokenizer(path), target)


def _require_linear_layers(model: PreTrainedModel, names: Sequence[str], field: str) -> None:
    """PEFT takes a name for the end of a layer's path, and is content if one of them is there."""
    layers = dict(model.named_modules())
    linear = {path for path, layer in layers.items() if isinstance(layer, nn.Linear | Conv1D)}
    known = ", ".join(sorted({path.rpartition(".")[2] for path in linear}))
    for name in names:
        found = [path for path in layers if path == name or path.endswith(f".{name}")]
        if not found or not linear.issuperset(found):
            raise InputError(
                field, name, f'"all-linear" or names of linear layers, which here are {known}'
            )
        embedding = model.get_input_embeddings().weight
        if any(layers[path].weight is embedding for path in found):
            raise InputError(
                field, name, "layers with weights of their own; this one's are the embedding's"
            )
