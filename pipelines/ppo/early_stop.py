"""Early stopping on held-out prompts (Llama 2, section 3.4.3)."""

from dataclasses import dataclass, replace
from typing import Any

from rayward.cluster.config.ppo import EarlyStopSettings


@dataclass(frozen=True)
class EarlyStopState:
    """What was seen so far."""

    best_step: int | None = None
    best_objective: float | None = None
    misses: int = 0  # measurements since the best


class EarlyStop:
    """Ends a stage once the objective on held-out prompts has stopped rising."""

    def __init__(self, settings: EarlyStopSettings) -> None:
        self._settings = settings
        self.state = EarlyStopState()

    def due(self, step: int, steps: int) -> bool:
        """Whether a measurement is due after `step` of `steps`: the last one always counts."""
        return step % self._settings.every == 0 or step == steps

    def observe(self, step: int, objective: float) -> None:
        """Take in one measurement."""
        best = self.state.best_objective
        if best is None or objective > best + self._settings.min_improvement:
            self.state = EarlyStopState(best_step=step, best_objective=objective)
        else:
            self.state = replace(self.state, misses=self.state.misses + 1)

    @property
    def exhausted(self) -> bool:
        """Whether the stage should end."""
        return self.state.misses >= self._settings.patience

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state from a checkpoint."""
        self.state = EarlyStopState(**state)
