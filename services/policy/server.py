"""The policy's deployment: vLLM's engine and its own OpenAI layer in each replica.

Ray's `serve.llm` has the same layer inside, but imports vLLM three times more before it is ready,
once of these in the process that deploys (69 s instead of 26 s on two cores).
"""

from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve import Application

from rayward.cluster.config.serving import HttpSettings, PolicyServiceSettings
from rayward.services.http.replicas import actor_options, life
from rayward.services.policy.schemas import Kind


class PolicyServer:
    """One replica. It loads vLLM itself, so that nobody who imports this module has to.

    Requests and answers are JSON in the form of vLLM's own API. An error that the client can mend
    is `{"error": {"status", "message", "param"}}`, no exception: Serve would log its traceback.

    Args:
        settings: of the policy.
    """

    async def __init__(self, settings: PolicyServiceSettings) -> None:  # type: ignore[misc]
        from rayward.services.policy.engine import PolicyEngine

        self._engine = await PolicyEngine.start(settings)

    async def answer(self, kind: Kind, request: dict[str, Any]) -> dict[str, Any]:
        """The whole answer to a request."""
        return await self._engine.answer(kind, request)

    async def stream(
        self, kind: Kind, request: dict[str, Any]
    ) -> AsyncIterator[str | dict[str, Any]]:
        """An answer as server-sent events, or one error instead."""
        async for event in self._engine.stream(kind, request):
            yield event

    async def check_health(self) -> None:
        """Serve replaces a replica whose engine is dead."""
        await self._engine.check_health()

    def __del__(self) -> None:
        # Serve's call at the end. The engine has a process of its own.
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.shutdown()


def policy_deployment(settings: PolicyServiceSettings, http: HttpSettings) -> Application:
    """The deployment of a policy."""
    deployment: Any = serve.deployment(
        PolicyServer,
        name="policy",
        num_replicas=settings.replicas,
        # More would wait inside the engine, where nobody counts them.
        max_ongoing_requests=settings.max_num_seqs,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options=actor_options(settings.resources, engine_environment(settings)),
        **life(http.generation_timeout_s),
    )
    return deployment.bind(settings)


def engine_environment(settings: PolicyServiceSettings) -> dict[str, str]:
    """Environment that an engine's process must start with."""
    return {
        # On a CPU the engine's process runs the model itself; else vLLM starts one more for it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        # Replicas share the cores: threads bound to cores would pile up on the first ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TORCHDYNAMO_DISABLE": "1" if settings.enforce_eager else "0",
    }
