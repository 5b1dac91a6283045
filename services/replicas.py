"""What every deployment asks of Serve and of Ray."""

from typing import Any

from cluster.config.roles import Resources

HEALTH: dict[str, Any] = {"health_check_period_s": 2.0, "health_check_timeout_s": 30.0}


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
