"""Settings of the PPO stage."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config.base import Settings
from cluster.config.roles import ReplicatedRole, RolloutRole, TrainedRole
from cluster.errors import InputError

KLEstimator = Literal["k1", "k2", "k3"]
RoleName = Literal["policy", "critic", "reference", "safety", "helpfulness", "rollout"]


class PiecewiseMixSettings(Settings):
    """The paper's rule: the safety model decides where it must (section 4.2.3)."""

    name: Literal["piecewise"] = "piecewise"
    """Which reward mix this is."""
    threshold: float = Field(default=0.15, gt=0, lt=1)
    """Below this safety probability (strictly) the safety model decides on any prompt."""


MixSettings = Annotated[PiecewiseMixSettings, Field()]


class KLSettings(Settings):
    """The penalty for leaving the reference."""

    beta: float = Field(default=0.01, ge=0)
    """Weight of the KL term in the token rewards."""
    estimator: KLEstimator = "k1"
    """Per-token KL estimator that enters the reward."""


class SamplingSettings(Settings):
    """How answers are drawn."""

    temperature: float = Field(default=1.0, gt=0)
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
    policy: TrainedRole = TrainedRole()
    """The policy's learner."""
    critic: TrainedRole = TrainedRole()
    """The critic's learner; by default it starts from the helpfulness reward model."""
    reference: ReplicatedRole = ReplicatedRole()
    """The frozen reference; by default the policy's starting point."""
    safety: ReplicatedRole = ReplicatedRole()
    """The safety reward model."""
    helpfulness: ReplicatedRole = ReplicatedRole()
    """The helpfulness reward model."""
    rollout: RolloutRole = RolloutRole()
    """The vLLM samplers."""
    colocate: list[list[RoleName]] = Field(default_factory=list)
    """Groups of roles that share a node (one placement-group bundle each)."""

    @model_validator(mode="after")
    def _minibatches_fill_the_batch(self) -> Self:
        if self.batch_size % self.minibatch_size:
            raise InputError(
                "ppo.minibatch_size",
                self.minibatch_size,
                f"a divisor of ppo.batch_size, which is {self.batch_size}",
            )
        return self

    @model_validator(mode="after")
    def _a_role_is_colocated_once(self) -> Self:
        named = [role for group in self.colocate for role in group]
        repeated = sorted({role for role in named if named.count(role) > 1})
        if repeated:
            expected = f"each role at most once; repeated: {', '.join(repeated)}"
            raise InputError("ppo.colocate", self.colocate, expected)
        return self
