"""What every deployment asks of Serve and of Ray."""

from typing import Any

from ray import serve

from rayward.cluster.config.roles import Resources

_MARGIN_S = 10.0  # for what comes after a time-out


def life(longest_request_s: float) -> dict[str, Any]:
    """How Serve looks after a replica, and lets it go.

    Args:
        longest_request_s: a replica that is stopped may finish requests of so long; Serve's own
            default of 20 seconds would cut them.
    """
    return {
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 30.0,
        "graceful_shutdown_timeout_s": longest_request_s + _MARGIN_S,
    }


def actor_options(
    resources: Resources, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """What a replica asks of Ray, as Serve takes it.

    Args:
        environment: more environment variables that its process starts with.
    """
    threads = {"OMP_NUM_THREADS": str(resources.threads)}
    return {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "resources": resources.custom,
        "label_selector": resources.labels,
        "runtime_env": {"env_vars": {**threads, **(environment or {})}},
    }


def without_replica(application: str) -> list[str]:
    """The deployments of a Serve application of which no replica stands, as Serve's controller
    knows it; the application itself where it is not there."""
    found = serve.status().applications.get(application)
    if found is None:
        return [application]
    return [
        name
        for name, deployment in found.deployments.items()
        if not any(state == "RUNNING" for state, n in deployment.replica_states.items() if n)
    ]
