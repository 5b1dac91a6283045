"""What groups of roles ask of the cluster. It loads no model library, for whoever only counts."""

from collections.abc import Sequence

from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.config.red_teaming import AttackerSettings
from rayward.cluster.ray_runtime.placement import RoleRequest
from rayward.cluster.types import Axis


def role_requests(settings: PPOSettings) -> list[RoleRequest]:
    """What a PPO run asks of the cluster."""
    critic = RoleRequest("critic", settings.critic.deepspeed.ranks, settings.critic.resources)
    return [
        RoleRequest("policy", settings.policy.deepspeed.ranks, settings.policy.resources),
        *([critic] if settings.has_critic else []),
        RoleRequest("reference", settings.reference.replicas, settings.reference.resources),
        RoleRequest("safety", settings.safety.replicas, settings.safety.resources),
        RoleRequest("helpfulness", settings.helpfulness.replicas, settings.helpfulness.resources),
        RoleRequest("rollout", settings.rollout.replicas, settings.rollout.resources),
    ]


def session_requests(settings: PPOSettings, axes: Sequence[Axis]) -> list[RoleRequest]:
    """What a session with a policy asks of the cluster."""
    rollout = RoleRequest("rollout", settings.rollout.replicas, settings.rollout.resources)
    roles = {axis: getattr(settings, axis) for axis in axes}
    return [
        rollout,
        *(RoleRequest(axis, role.replicas, role.resources) for axis, role in roles.items()),
    ]


def attacker_requests(settings: AttackerSettings) -> list[RoleRequest]:
    """What an attacker asks of the cluster, beside the policy that it attacks."""
    return [RoleRequest("attacker", settings.rollout.replicas, settings.rollout.resources)]
