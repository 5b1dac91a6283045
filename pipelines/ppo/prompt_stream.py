"""Prompts in a seeded order, epoch after epoch, with a cursor that survives a restart."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayward.cluster.errors import InputError
from rayward.cluster.types import Prompt
from rayward.pipelines.run.encoding import EncodedPrompt


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
