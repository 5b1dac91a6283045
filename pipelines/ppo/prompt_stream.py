"""Prompts in a seeded order, epoch after epoch, with a cursor that survives a restart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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


class PromptStream:
    """Draws prompts without replacement within an epoch.

    The cursor is the ids consumed in the current epoch, not an offset: prompts that were added
    or taken away between two sessions neither shift it nor are drawn twice.
    """

    def __init__(self, prompts: Sequence[EncodedPrompt], seed: int) -> None:
        if not prompts:
            raise InputError("prompts", 0, "at least one training prompt")
        self._prompts = prompts
        self._seed = seed
        self._epoch = 0
        self._consumed: list[str] = []
        self._order = self._shuffled()

    def take(self, count: int) -> list[EncodedPrompt]:
        """The next prompts; a new epoch begins wherever one ends."""
        taken: list[EncodedPrompt] = []
        while len(taken) < count:
            if not self._order:
                self._epoch += 1
                self._consumed = []
                self._order = self._shuffled()
            missing = count - len(taken)
            chosen, self._order = self._order[:missing], self._order[missing:]
            taken += chosen
            self._consumed += [one.prompt.id for one in chosen]
        return taken

    def by_id(self) -> dict[str, Prompt]:
        """All prompts by their ids."""
        return {one.prompt.id: one.prompt for one in self._prompts}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"epoch": self._epoch, "consumed": list(self._consumed)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after the prompts that `state` names."""
        self._epoch = state["epoch"]
        self._consumed = list(state["consumed"])
        consumed = set(self._consumed)
        self._order = [one for one in self._shuffled() if one.prompt.id not in consumed]

    def _shuffled(self) -> list[EncodedPrompt]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._prompts))
        return [self._prompts[index] for index in order]
