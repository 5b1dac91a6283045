"""The shapes of decoders, and how many parameters they have."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A decoder with gated feed-forward layers, such as Llama."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    parameters: int
    """Of the language model, the head included; a head that is tied counts once."""
    head_is_tied: bool = False

    @property
    def scalar_parameters(self) -> int:
        """With one output per token in place of the language-model head."""
        head = 0 if self.head_is_tied else self.vocabulary * self.hidden
        return self.parameters - head + self.hidden

    @property
    def query_width(self) -> int:
        """All heads' queries, side by side."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """All heads' keys (or values), side by side."""
        return self.kv_heads * self.head_size


def llama_parameters(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocabulary: int,
    head_is_tied: bool = False,
) -> int:
    """Parameters of a Llama without biases (Touvron et al. 2023, as transformers lays it out).

    Embedding, head and last norm; in each layer queries and output, keys and values, the three
    matrices of SwiGLU, and two norms.
    """
    kv_width = hidden // heads * kv_heads
    layer = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * intermediate + 2 * hidden
    embeddings = vocabulary * hidden * (1 if head_is_tied else 2)
    return embeddings + layers * layer + hidden


def _llama_2(name: str, hidden: int, layers: int, heads: int, kv_heads: int, inner: int) -> Shape:
    count = llama_parameters(hidden, layers, heads, kv_heads, inner, 32000)
    size = hidden // heads
    return Shape(name, hidden, layers, heads, kv_heads, size, inner, 32000, count)


LLAMA_2 = {
    shape.name: shape
    for shape in (
        _llama_2("7B", 4096, 32, 32, 32, 11008),
        _llama_2("13B", 5120, 40, 40, 40, 13824),
        _llama_2("70B", 8192, 80, 64, 8, 28672),
    )
}
"""Llama 2 as published: the numbers of its config.json files (meta-llama/Llama-2-*-hf)."""


def read_shape(path: str) -> Shape:
    """The shape of a causal language model, by its configuration; no weights are loaded.

    Raises:
        InputError: names `--model`; there is none at `path`.
    """
    # They take seconds to import, which only those pay who name a model.
    import torch
    from transformers import AutoModelForCausalLM

    from rayward.actors.models.kinds import CAUSAL_LM, load_config, require_causal_lm

    config = load_config(path, "--model", CAUSAL_LM)
    require_causal_lm(config, path, "--model")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    heads, hidden = int(text.num_attention_heads), int(text.hidden_size)
    return Shape(
        name=path,
        hidden=hidden,
        layers=int(text.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(getattr(text, "head_dim", None) or hidden // heads),
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        vocabulary=int(text.vocab_size),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        head_is_tied=bool(getattr(text, "tie_word_embeddings", False)),
    )
