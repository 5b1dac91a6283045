"""All roles of a PPO run: started together, asked together.

rollout workers -> { policy, critic, reference, safety, helpfulness } -> learners -> weight sync
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from rayward.actors.learning.learner import Learner
from rayward.actors.learning.reference import Reference
from rayward.actors.requests import role_requests
from rayward.actors.sampling.rollout_worker import RolloutWorker, rollout_environment
from rayward.actors.scoring.reward_model import RewardModel
from rayward.actors.sharding import Deal, deal, in_order, joined, share
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.ray_runtime.placement import Placement
from rayward.cluster.types import Experience, Float32Array, Scores

Wait = Callable[[Sequence[ObjectRef]], None]


@dataclass(frozen=True)
class ModelPaths:
    """Transformers directories or hub ids, one per role."""

    policy: str
    critic: str | None  # None where the advantages need no critic
    reference: str
    safety: str
    helpfulness: str


@dataclass(frozen=True)
class FrozenScoring:
    """What the models that never change are about to say of some shards of rollouts."""

    reference: list[ObjectRef]
    safety: list[ObjectRef]
    helpfulness: list[ObjectRef]


class Roles:
    """Handles to every role's processes.

    Args:
        settings: the PPO stage's settings.
        paths: which model each role starts from.
        max_model_len: longest prompt plus answer, in tokens.
        eos_token_id: ends an answer.
        seed: of the run.
    """

    def __init__(
        self,
        settings: PPOSettings,
        paths: ModelPaths,
        max_model_len: int,
        eos_token_id: int,
        seed: int,
    ) -> None:
        self._settings = settings
        self._timeout = settings.phase_timeout_s
        self._placement = Placement(role_requests(settings), settings.colocate)
        try:
            self._start(paths, max_model_len, eos_token_id, seed)
        except BaseException:
            self.release()
            raise

    def _start(self, paths: ModelPaths, max_model_len: int, eos_token_id: int, seed: int) -> None:
        settings, start = self._settings, self._placement.start
        self._policy = self._learners("policy", paths.policy, seed)
        self._critic = self._learners("critic", paths.critic, seed) if paths.critic else []
        rollout = {
            "model": paths.policy,
            "settings": settings.rollout,
            "max_model_len": max_model_len,
            "eos_token_id": eos_token_id,
            "seed": seed,
        }
        self._rollout = start(
            "rollout",
            RolloutWorker,
            [rollout] * settings.rollout.replicas,
            rollout_environment(settings.rollout),
        )
        reference = {
            "path": paths.reference,
            "settings": settings.reference,
            "temperature": settings.sampling.temperature,
        }
        self._reference = start(
            "reference", Reference, [reference] * settings.reference.replicas, {}
        )
        self._safety = self._reward_models("safety", paths.safety, paths.policy)
        self._helpfulness = self._reward_models("helpfulness", paths.helpfulness, paths.policy)
        for group in filter(None, (self._policy, self._critic)):
            meeting: Any = self._get(group[0].rendezvous.remote())
            self._get([rank.join.remote(*meeting) for rank in group])
        # A sampler that is still loading must not eat up the time that a sync may take.
        self._get([worker.version.remote() for worker in self._rollout])
        self.sync(0)

    def _get(self, calls: ObjectRef | Sequence[ObjectRef]) -> Any:  # noqa: ANN401 (Ray's own)
        """Wait for answers; a role that hangs is an error, not a run that hangs.

        Raises:
            ray.exceptions.GetTimeoutError: no answer within `phase_timeout_s`.
        """
        return ray.get(calls, timeout=self._timeout)

    def _learners(self, role: str, path: str, seed: int) -> list[ActorHandle]:
        own = {"role": role, "path": path, "settings": self._settings, "seed": seed}
        ranks = getattr(self._settings, role).deepspeed.ranks
        return self._placement.start(role, Learner, [own | {"rank": r} for r in range(ranks)], {})

    @property
    def rollout_workers(self) -> list[ActorHandle]:
        """Handles of the rollout workers."""
        return self._rollout

    @property
    def sample(self) -> Deal:
        """Starts sampling; see `deal`."""
        return deal(self._rollout)

    def reward_scores(self, shards: Sequence[ObjectRef]) -> tuple[Float32Array, Float32Array]:
        """Have both reward models score rollouts: safety and helpfulness, float32 [N] each."""
        safety = share(self._safety, "score", shards)
        helpfulness = share(self._helpfulness, "score", shards)
        return np.concatenate(self._get(safety)), np.concatenate(self._get(helpfulness))

    def start_frozen(self, shards: Sequence[ObjectRef]) -> FrozenScoring:
        """Have reference and reward models score rollouts as soon as they are there."""
        return FrozenScoring(
            reference=share(self._reference, "logprobs", shards),
            safety=share(self._safety, "score", shards),
            helpfulness=share(self._helpfulness, "score", shards),
        )

    def score(
        self,
        shards: Sequence[ObjectRef],
        frozen: Sequence[FrozenScoring] | None = None,
        wait: Wait | None = None,
    ) -> Scores:
        """Have every model score rollouts, all models at the same time.

        Args:
            shards: references to lists of rollouts.
            frozen: what `start_frozen` gave for the same shards in the same order, if it was
                called before.
            wait: waits for answers while it does something else; by default this call waits.
        """
        frozen = frozen or [self.start_frozen(shards)]
        policy = [rank.score.remote(*shards) for rank in self._policy]
        critic = [rank.score.remote(*shards) for rank in self._critic]
        reference, safety, helpfulness = (
            [call for one in frozen for call in getattr(one, name)]
            for name in ("reference", "safety", "helpfulness")
        )
        if wait:
            wait([*policy, *critic, *reference, *safety, *helpfulness])
        logprobs = in_order(self._get(policy))
        no_values = [np.zeros_like(own) for own in logprobs]
        return Scores(
            rollouts=joined(self._get(shards)),
            policy_logprobs=logprobs,
            reference_logprobs=joined(self._get(reference)),
            values=in_order(self._get(critic)) if critic else no_values,
            safety=np.concatenate(self._get(safety)),
            helpfulness=np.concatenate(self._get(helpfulness)),
        )

    def update(
        self,
        experiences: Sequence[Experience],
        version: int,
        kl_coef: float,
        wait: Wait | None = None,
    ) -> dict[str, float]:
        """One pass of all learners over a batch; returns their metrics.

        Args:
            experiences: the batch.
            version: of the weights that are about to change.
            kl_coef: weight of the KL term where it is part of the loss.
            wait: as for `score`.
        """
        batch = ray.put(list(experiences))
        ranks = [*self._policy, *self._critic]
        calls = [rank.update.remote(batch, version, kl_coef) for rank in ranks]
        if wait:
            wait(calls)
        metrics = self._get(calls)
        learned: dict[str, float] = metrics[0]
        if self._critic:
            learned = learned | metrics[len(self._policy)]
        return learned

    def sync(self, version: int) -> None:
        """Bring every rollout worker to the policy's weights and stamp them with `version`."""
        calls = [rank.sync_weights.remote(self._rollout, version) for rank in self._policy]
        # Each call to a sampler has this time-out too; here it catches a learner that hangs.
        ray.get(calls, timeout=2 * self._settings.rollout.weight_sync.timeout_s)

    def save(self, directory: Path) -> None:
        """Write the learners' whole state."""
        self._get([rank.save.remote(directory) for rank in (*self._policy, *self._critic)])

    def restore(self, directory: Path) -> None:
        """Take up the learners' whole state."""
        self._get([rank.restore.remote(directory) for rank in (*self._policy, *self._critic)])

    def export(self, directory: Path) -> None:
        """Write the policy as a transformers directory."""
        self._get([rank.export.remote(directory) for rank in self._policy])

    def reference_digest(self) -> str:
        """A hash of the reference's weights; all replicas must agree."""
        digests = set(self._get([replica.digest.remote() for replica in self._reference]))
        if len(digests) != 1:
            raise RuntimeError(f"the reference's replicas hold different weights: {digests}")
        return str(digests.pop())

    def release(self) -> None:
        """End all roles and give their room back."""
        self._placement.release()

    def _reward_models(self, role: str, path: str, policy_path: str) -> list[ActorHandle]:
        settings = getattr(self._settings, role)
        own = {"role": role, "path": path, "settings": settings, "policy_path": policy_path}
        return self._placement.start(role, RewardModel, [own] * settings.replicas, {})
