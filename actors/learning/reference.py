"""The reference: the frozen model that the policy must not leave too far."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from rayward.actors.models.forward import response_logprobs, split_rows
from rayward.actors.models.loading import load_causal_lm, weights_digest
from rayward.actors.models.microbatches import part_of, plan_microbatches
from rayward.cluster.config.roles import ScoringRole
from rayward.cluster.types import Float32Array, Rollout


class Reference:
    """Scores rollouts under weights that never change.

    Args:
        path: a transformers directory or hub id.
        settings: the role's settings.
        temperature: the sampling temperature.
    """

    def __init__(self, path: str, settings: ScoringRole, temperature: float) -> None:
        torch.set_num_threads(settings.resources.threads)
        self._settings = settings
        self._temperature = temperature
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_causal_lm(path, settings.precision, "ppo.reference.path")
        nn.Module.to(self._model, device).requires_grad_(False).eval()

    @torch.no_grad()
    def logprobs(
        self, rollouts: Sequence[Rollout], part: int = 0, parts: int = 1
    ) -> list[Float32Array]:
        """Logprobs of the response tokens: N rollouts -> N arrays of float32 [R_i].

        Of `parts` replicas that share the rollouts, this one takes its `part`.
        """
        rollouts = part_of(rollouts, part, parts)
        result: list[Float32Array] = [np.empty(0, np.float32)] * len(rollouts)
        lengths = [len(rollout.token_ids) for rollout in rollouts]
        for rows in plan_microbatches(lengths, self._settings.max_tokens_per_microbatch):
            batch = [rollouts[row] for row in rows]
            flat, _ = response_logprobs(self._model, batch, self._temperature, with_entropy=False)
            for row, values in zip(rows, split_rows(flat, batch), strict=True):
                result[row] = values.cpu().numpy()
        return result

    def digest(self) -> str:
        """A hash of all weights: equal before and after a run, or something is wrong."""
        return weights_digest(self._model)
