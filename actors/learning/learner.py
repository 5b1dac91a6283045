"""The PPO learner: a DeepSpeed rank of the policy group or of the critic group."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import ray
import torch
import torch.distributed
from ray.actor import ActorHandle
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayward.actors.learning.lora import adapter_weights, add_adapters, save_adapter
from rayward.actors.learning.losses import importance_weights, kl_loss, policy_loss, value_loss
from rayward.actors.learning.zero import (
    copies,
    full_weights,
    gradient_norm,
    join_process_group,
    make_engine,
    recompute_activations,
)
from rayward.actors.models.forward import response_logprobs, response_values, split_rows
from rayward.actors.models.loading import (
    load_causal_lm,
    load_scalar_model,
    load_tokenizer,
    save_model,
)
from rayward.actors.models.microbatches import microbatches_of_rank
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.types import Experience, Float32Array, Rollout

# What a microbatch adds to the metrics: loss, clipped tokens, drift from the old logprobs,
# entropy, KL in the loss.
_SUMS = ("loss", "clipped", "moved", "entropy", "kl")


class Learner:
    """One rank. All ranks of a group are called together, with the same arguments.

    Args:
        role: which of the two models this group trains.
        path: a transformers directory or hub id.
        settings: the PPO stage's settings.
        rank: this process's rank in its group.
        seed: of the critic's new head, where it needs one, and of the minibatches.
    """

    def __init__(
        self,
        role: Literal["policy", "critic"],
        path: str,
        settings: PPOSettings,
        rank: int,
        seed: int,
    ) -> None:
        self._role = role
        self._path = path
        self._settings = settings
        self._own = settings.policy if role == "policy" else settings.critic
        self._lora = settings.policy.lora if role == "policy" else None
        self._rank = rank
        self._seed = seed
        self._world = self._own.deepspeed.ranks
        torch.set_num_threads(self._own.resources.threads)
        torch.manual_seed(seed)

    def rendezvous(self) -> tuple[str, int]:
        """Address and free port of this process, for the group to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, address: str, port: int) -> None:
        """Meet the other ranks and load the model.

        Raises:
            InputError: the model cannot be loaded, or cannot be trained as the recipe asks.
        """
        join_process_group(self._rank, self._world, address, port)
        field = f"ppo.{self._role}.path"
        if self._role == "policy":
            model = load_causal_lm(self._path, self._own.precision, field)
        else:
            model = load_scalar_model(self._path, self._own.precision, seed=self._seed, field=field)
        self._tokenizer = load_tokenizer(self._path, field)
        if self._lora is not None:
            self._adapters = add_adapters(model, self._lora, self._seed, "ppo.policy.lora")
        if self._own.gradient_checkpointing:
            recompute_activations(model, f"ppo.{self._role}.gradient_checkpointing")
        self._model = model
        self._engine = make_engine(
            _Scorer(model, self._settings.sampling.temperature, self._role),
            self._own.optimizer,
            self._own.deepspeed,
            self._own.precision,
        )

    @torch.no_grad()
    def score(self, *shards: Sequence[Rollout]) -> dict[int, Float32Array]:
        """Logprobs (policy) or values (critic) of this rank's share of a batch.

        Args:
            shards: the batch of N rollouts, in pieces.

        Returns:
            index in the batch -> float32 [R]; the ranks' answers together cover the batch.
        """
        batch = [rollout for shard in shards for rollout in shard]
        result: dict[int, Float32Array] = {}
        for indices, weight in self._microbatches(batch):
            rows = [batch[index] for index in indices]
            flat, _ = self._engine(rows, with_entropy=False)
            if weight:
                for index, values in zip(indices, split_rows(flat, rows), strict=True):
                    result[index] = values.cpu().numpy()
        return result

    def update(
        self, experiences: Sequence[Experience], version: int, kl_coef: float
    ) -> dict[str, float]:
        """One pass over a batch: one optimizer step per minibatch.

        Args:
            experiences: the whole batch, the same on every rank.
            version: of the weights that are about to change; seeds the minibatches.
            kl_coef: weight of the KL term where it is part of the loss (GRPO).

        Returns:
            The group's metrics, means over action tokens, the same on every rank.
        """
        order = np.random.default_rng([self._seed, version]).permutation(len(experiences))
        size = self._settings.minibatch_size
        # As `_loss` sums them; where the group's backend can add them up.
        totals = torch.zeros(len(_SUMS), dtype=torch.float64, device=self._engine.device)
        gradient_norms = []
        tokens_seen = 0
        for start in range(0, len(order), size):
            minibatch = [experiences[index] for index in order[start : start + size]]
            tokens = sum(len(experience.advantages) for experience in minibatch)
            rollouts = [experience.scored.rollout for experience in minibatch]
            for indices, weight in self._microbatches(rollouts):
                loss, sums = self._loss([minibatch[index] for index in indices], kl_coef)
                self._engine.backward(loss * (weight * self._world / tokens), scale_wrt_gas=False)
                totals += weight * sums
            self._engine.step()
            gradient_norms.append(gradient_norm(self._engine))
            tokens_seen += tokens
        if self._world > 1:
            torch.distributed.all_reduce(totals)
        means = dict(zip(_SUMS, (totals / tokens_seen).tolist(), strict=True))
        norm = float(np.mean(gradient_norms))
        if self._role == "critic":
            return {
                "critic/vf_loss": means["loss"],
                "critic/vf_clipfrac": means["clipped"],
                "critic/grad_norm": norm,
            }
        metrics = {
            "actor/pg_loss": means["loss"] - kl_coef * means["kl"],
            "actor/pg_clipfrac": means["clipped"],
            "actor/ppo_kl": means["moved"],
            "actor/entropy": means["entropy"],
            "actor/grad_norm": norm,
            "actor/optimizer_steps": float(len(gradient_norms)),
        }
        return metrics | ({"actor/kl_loss": means["kl"]} if self._settings.kl_in_loss else {})

    def sync_weights(self, samplers: list[ActorHandle], version: int) -> None:
        """Send the policy's weights to the samplers and stamp them with `version`."""
        # vLLM takes seconds to import, and only the policy group speaks to it.
        from rayward.actors.learning.weight_sync import open_sync

        if not hasattr(self, "_sync"):
            self._sync = open_sync(self._settings.rollout, samplers, self._model, self._rank)
        client, trainer = self._sync
        client.version = version
        trainer.send_weights()

    def export(self, directory: Path) -> None:
        """Write the model, or its adapter where the recipe says so, and the tokenizer.

        A model is a transformers directory and an adapter is a PEFT directory.
        """
        keep = self._rank == 0
        if self._lora is not None and self._lora.save_as == "adapter":
            weights = copies(adapter_weights(self._model), keep)
            if keep:
                save_adapter(
                    self._model, self._adapters, self._path, self._tokenizer, directory, weights
                )
            return
        weights = full_weights(self._model, keep)
        if keep:
            save_model(self._model, self._tokenizer, directory, weights)

    def save(self, directory: Path) -> None:
        """Write everything that DeepSpeed needs to go on: weights, optimizer, counters.

        Weights that are not trained stay out: `join` loads them from where the model started.
        """
        self._engine.save_checkpoint(
            str(directory), tag=self._role, save_latest=False, exclude_frozen_parameters=True
        )

    def restore(self, directory: Path) -> None:
        """Take up what `save` wrote."""
        loaded, _ = self._engine.load_checkpoint(
            str(directory), tag=self._role, load_module_strict=self._lora is None
        )
        if loaded is None:
            raise FileNotFoundError(f"no {self._role} state in checkpoint {directory}")

    def _microbatches(self, rollouts: Sequence[Rollout]) -> list[tuple[list[int], float]]:
        """This rank's share of a batch: indices and the weight of each microbatch."""
        lengths = [len(rollout.token_ids) for rollout in rollouts]
        budget = self._own.max_tokens_per_microbatch
        return microbatches_of_rank(lengths, budget, self._rank, self._world)

    def _loss(self, experiences: Sequence[Experience], kl_coef: float) -> tuple[Tensor, Tensor]:
        """Summed loss of a microbatch, and float64 sums for the metrics, as in `_SUMS`."""
        scored = [experience.scored for experience in experiences]
        new, spread = self._engine([one.rollout for one in scored], with_entropy=True)
        zero = torch.zeros_like(new)
        moved, kl = zero, zero
        if self._role == "critic":
            old = _flat([one.values for one in scored], new)
            returns = _flat([experience.returns for experience in experiences], new)
            losses, clipped = value_loss(new, old, returns, self._settings.value_clip)
        else:
            old = _flat([one.policy_logprobs for one in scored], new)
            advantages = _flat([experience.advantages for experience in experiences], new)
            losses, clipped = policy_loss(new, old, advantages, self._settings.ratio_clip)
            if self._settings.corrects_sampler:
                sampled = _flat([one.rollout.sampler_logprobs for one in scored], new)
                cap = self._settings.importance_weight_cap
                losses = losses * importance_weights(old, sampled, cap)
            if self._settings.kl_in_loss:
                kl = kl_loss(new, _flat([one.reference_logprobs for one in scored], new))
                losses = losses + kl_coef * kl
            moved = old - new
        sums = [losses, clipped, moved, zero if spread is None else spread, kl]
        return losses.sum(), torch.stack([one.detach().double().sum() for one in sums])


class _Scorer(nn.Module):
    """The model and what is asked of it as one module, whose forward pass DeepSpeed watches."""

    def __init__(self, model: PreTrainedModel, temperature: float, role: str) -> None:
        super().__init__()
        self.model = model
        self._temperature = temperature
        self._role = role

    def forward(
        self, rollouts: Sequence[Rollout], with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Logprobs and entropies (policy) or values (critic) of all response tokens, [T]."""
        if self._role == "critic":
            return response_values(self.model, rollouts), None
        return response_logprobs(self.model, rollouts, self._temperature, with_entropy)


def _flat(rows: Sequence[Float32Array], like: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate(rows)).to(like.device)
