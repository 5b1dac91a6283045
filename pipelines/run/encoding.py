"""Prompts as token ids, and those that are too long."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rayward.actors.text.chat import encode_prompt
from rayward.cluster.errors import InputError
from rayward.cluster.types import Prompt


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and its token ids, the chat template's generation prompt included."""

    prompt: Prompt
    token_ids: list[int]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_tokens: int, field: str
) -> tuple[list[EncodedPrompt], int]:
    """Encode prompts, leaving out those over `max_tokens`, which the setting `field` says.

    Returns:
        What fits, in order, and how many did not.

    Raises:
        InputError: none fits.
    """
    encoded = [
        EncodedPrompt(prompt, encode_prompt(tokenizer, prompt.messages)) for prompt in prompts
    ]
    kept = [one for one in encoded if len(one.token_ids) <= max_tokens]
    if prompts and not kept:
        shortest = min(len(one.token_ids) for one in encoded)
        raise InputError(
            field,
            max_tokens,
            f"room for at least one prompt; the shortest has {shortest} tokens",
        )
    return kept, len(encoded) - len(kept)
