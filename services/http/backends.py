"""What the routes pass requests on to."""

from collections.abc import Mapping
from dataclasses import dataclass

from ray.serve.handle import DeploymentHandle

from rayward.cluster.config.serving import ServingSettings
from rayward.cluster.types import Axis


@dataclass(frozen=True)
class Backends:
    """The deployments behind the gateway, as far as they are served."""

    settings: ServingSettings
    reward: Mapping[Axis, DeploymentHandle]
    """Of `rayward.services.rewards.server.RewardServer`, by axis; empty where none is served."""
    policy: DeploymentHandle | None
    """Of `rayward.services.policy.server.PolicyServer`."""
    jobs: DeploymentHandle | None
    """Of `rayward.services.jobs.service.JobService`."""
