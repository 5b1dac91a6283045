"""Settings of the PPO stage."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rayward.cluster.config.base import Settings
from rayward.cluster.config.mixes import MixSettings, PiecewiseMixSettings
from rayward.cluster.config.roles import (
    PolicyRole,
    ReplicatedRewardRole,
    ReplicatedRole,
    RolloutRole,
    TrainedRole,
)
from rayward.cluster.errors import InputError

KLEstimator = Literal["k1", "k2", "k3"]
AdvantageEstimator = Literal["gae", "grpo", "rloo"]
RoleName = Literal["policy", "critic", "reference", "safety", "helpfulness", "rollout"]

_DEFAULT_GROUP = 8


class AdaptiveKLSettings(Settings):
    """Steer beta so that the KL stays near a target (Ziegler et al. 2019, section 2.2)."""

    target: float = Field(default=6.0, gt=0)
    """KL of whole answers to the reference to aim for, in nats."""
    horizon: int = Field(default=10_000, ge=1)
    """Rollouts over which beta changes by at most a fifth or so; smaller is faster."""


class KLSettings(Settings):
    """The penalty for leaving the reference."""

    beta: float = Field(default=0.01, ge=0)
    """Weight of the KL term; where it is adaptive, its first value."""
    estimator: KLEstimator = "k1"
    """Per-token KL estimator that enters the token rewards. GRPO has k3 in its loss instead."""
    adaptive: AdaptiveKLSettings | None = None
    """Steer beta towards a target; null keeps it fixed."""

    @model_validator(mode="after")
    def _beta_can_be_steered(self) -> Self:
        if self.adaptive is not None and self.beta == 0:
            raise InputError("beta", self.beta, "above 0, where adaptive steers it")
        return self


class SamplingSettings(Settings):
    """How answers are drawn."""

    temperature: float = Field(default=1.0, gt=0, le=2)
    """Logits are divided by this; logprobs on every side are taken at it."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus size."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """Longer prompts are left out and counted."""
    max_response_tokens: int = Field(default=64, ge=1)
    """Answers are cut after this many tokens."""


class EarlyStopSettings(Settings):
    """Stop when the reward on held-out prompts has stopped rising (section 3.4.3)."""

    every: int = Field(default=5, ge=1)
    """Steps between two measurements."""
    prompts: int = Field(default=256, ge=1)
    """Held-out prompts measured, at most."""
    patience: int = Field(default=3, ge=1)
    """Measurements without a new best before the stage ends; the best checkpoint is kept."""
    min_improvement: float = Field(default=0.0, ge=0)
    """A new best must beat the old by this much, in units of the objective."""


class CheckpointSettings(Settings):
    """What is kept while a run goes on."""

    every: int = Field(default=10, ge=1)
    """Steps between two checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Newest complete checkpoints that stay; older ones go after a new one stands."""


class PPOSettings(Settings):
    """Proximal policy optimisation with two reward models (Llama 2, section 3.4.3)."""

    steps: int = Field(default=200, ge=1)
    """Iterations: each samples a batch, scores it and learns from it."""
    batch_size: int = Field(default=512, ge=2)
    """Rollouts per step."""
    minibatch_size: int = Field(default=64, ge=1)
    """Rollouts per optimizer step; must divide batch_size."""
    advantage_estimator: AdvantageEstimator = "gae"
    """gae has a critic; grpo and rloo compare answers to one prompt, and have none."""
    samples_per_prompt: int | None = Field(default=None, ge=1)
    """Answers per prompt in a batch; null: 1 with gae, 8 without a critic."""
    max_staleness: int = Field(default=0, ge=0)
    """Weight versions that a rollout may be behind. 0 is synchronous and repeatable."""
    importance_weight_cap: float = Field(default=2.0, ge=1)
    """Where rollouts may be stale or sampled in bfloat16, tokens are weighted by the ratio of the
    learner's to the sampler's probability, cut off here."""
    mix: MixSettings = PiecewiseMixSettings()
    """How the two scores become one reward."""
    kl: KLSettings = KLSettings()
    """The KL penalty."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda."""
    ratio_clip: float = Field(default=0.2, gt=0)
    """PPO's clip range of the probability ratio."""
    value_clip: float = Field(default=0.2, gt=0)
    """Clip range of the value update."""
    missing_end_penalty: float = Field(default=0.0, ge=0)
    """Taken from the reward of an answer that was cut before its end token."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn."""
    early_stop: EarlyStopSettings | None = EarlyStopSettings()
    """Early stop on held-out prompts; null runs all steps."""
    phase_timeout_s: float = Field(default=3600.0, gt=0)
    """A phase of a step (sampling, scoring, learning, saving) that takes longer is an error."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Checkpoints at step boundaries."""
    policy: PolicyRole = PolicyRole()
    """The policy's learner."""
    critic: TrainedRole = TrainedRole()
    """The critic's learner; by default it starts from the helpfulness reward model, or from the
    policy where that model does not read the policy's tokens. Unused by grpo and rloo."""
    reference: ReplicatedRole = ReplicatedRole()
    """The frozen reference; by default the policy's starting point."""
    safety: ReplicatedRewardRole = ReplicatedRewardRole()
    """The safety reward model."""
    helpfulness: ReplicatedRewardRole = ReplicatedRewardRole()
    """The helpfulness reward model."""
    rollout: RolloutRole = RolloutRole()
    """The vLLM samplers."""
    colocate: list[list[RoleName]] = Field(default_factory=list)
    """Groups of roles that share a node (one placement-group bundle each)."""

    @model_validator(mode="after")
    def _minibatches_fill_the_batch(self) -> Self:
        if self.batch_size % self.minibatch_size:
            raise InputError(
                "minibatch_size",
                self.minibatch_size,
                f"a divisor of batch_size, which is {self.batch_size}",
            )
        return self

    @property
    def group_size(self) -> int:
        """Answers per prompt in a batch."""
        if self.samples_per_prompt is not None:
            return self.samples_per_prompt
        return 1 if self.has_critic else _DEFAULT_GROUP

    @property
    def has_critic(self) -> bool:
        """Whether the advantages come from a critic."""
        return self.advantage_estimator == "gae"

    @property
    def kl_in_loss(self) -> bool:
        """Whether the KL term is part of the loss, as in GRPO, and not of the token rewards."""
        return self.advantage_estimator == "grpo"

    @property
    def corrects_sampler(self) -> bool:
        """Whether the sampler's distribution can differ from the learner's by more than noise."""
        return self.max_staleness > 0 or self.rollout.precision != "float32"

    @model_validator(mode="after")
    def _groups_fill_the_batch(self) -> Self:
        if self.batch_size % self.group_size:
            raise InputError(
                "samples_per_prompt",
                self.group_size,
                f"a divisor of batch_size, which is {self.batch_size}",
            )
        if not self.has_critic and self.group_size < 2:
            raise InputError(
                "samples_per_prompt",
                self.group_size,
                f"at least 2, because {self.advantage_estimator} compares answers to one prompt",
            )
        return self

    @model_validator(mode="after")
    def _a_role_is_colocated_once(self) -> Self:
        named = [role for group in self.colocate for role in group]
        repeated = sorted({role for role in named if named.count(role) > 1})
        if repeated:
            expected = f"each role at most once; repeated: {', '.join(repeated)}"
            raise InputError("colocate", self.colocate, expected)
        return self
