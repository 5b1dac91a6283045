"""Forward passes over rollouts: what a model says of each response token.

Position t predicts token t + 1: a response that starts at s is read off positions s - 1 to L - 2.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayward.actors.models.loading import token_values
from rayward.actors.models.logits import entropy, token_logprobs
from rayward.actors.models.microbatches import length_mask, right_pad
from rayward.cluster.types import Rollout


def _padded(rollouts: Sequence[Rollout], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids int64 [B, L] and attention mask int64 [B, L], right-padded."""
    rows = [rollout.token_ids for rollout in rollouts]
    return right_pad(rows, 0).to(device), length_mask([len(row) for row in rows]).to(device)


def _predictors(rollouts: Sequence[Rollout], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and position, int64 [T] each, that predict each of the T response tokens."""
    rows = [torch.full((len(r.response_ids),), i) for i, r in enumerate(rollouts)]
    positions = [torch.arange(r.response_start - 1, len(r.token_ids) - 1) for r in rollouts]
    return torch.cat(rows).to(device), torch.cat(positions).to(device)


def response_logprobs(
    model: PreTrainedModel, rollouts: Sequence[Rollout], temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Logprobs of all response tokens of a microbatch, row after row.

    Args:
        model: the causal language model (its engine, while training).
        rollouts: B rollouts with T response tokens in all.
        temperature: the sampling temperature.
        with_entropy: also give the sampling distribution's entropy.

    Returns:
        float32 [T] logprobs, and float32 [T] entropies or None.
    """
    device = next(model.parameters()).device
    ids, mask = _padded(rollouts, device)
    rows, positions = _predictors(rollouts, device)
    # Logits of prompt tokens are of no use; they would be most of the memory.
    first = min(rollout.response_start for rollout in rollouts) - 1
    options = {"logits_to_keep": ids.shape[1] - first} if _can_leave_out_logits(model) else {}
    output = model(input_ids=ids, attention_mask=mask, use_cache=False, **options)
    # Where the architecture leaves none out, the first ones are skipped here.
    skipped = ids.shape[1] - output.logits.shape[1]
    logits = output.logits[rows, positions - skipped]
    logprobs = token_logprobs(logits, ids[rows, positions + 1], temperature)
    return logprobs, entropy(logits.detach(), temperature) if with_entropy else None


def _can_leave_out_logits(model: PreTrainedModel) -> bool:
    """Nearly every causal model can; some would take the option, among others, and ignore it."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def response_values(model: PreTrainedModel, rollouts: Sequence[Rollout]) -> Tensor:
    """The critic's value before each response token, row after row: float32 [T]."""
    device = next(model.parameters()).device
    ids, mask = _padded(rollouts, device)
    rows, positions = _predictors(rollouts, device)
    return token_values(model, ids, mask)[rows, positions]


def split_rows(flat: Tensor, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """Cut a [T] tensor back into one per rollout, [R_i] each."""
    return list(flat.split([len(rollout.response_ids) for rollout in rollouts]))
