"""The policy's deployment: how it is set, and that nobody but a replica loads vLLM."""

import subprocess
import sys
from typing import Any

from rayward.cluster.config.roles import Resources
from rayward.cluster.config.serving import HttpSettings, PolicyServiceSettings
from rayward.services.policy.engine import engine_arguments
from rayward.services.policy.server import engine_environment, policy_deployment


def test_the_deployment_is_as_the_settings_say() -> None:
    resources = Resources(cpus=2, gpus=1, custom={"fast": 1}, labels={"pool": "rollout"}, threads=3)
    settings = PolicyServiceSettings(
        path="p", replicas=2, max_num_seqs=8, max_queued_requests=5, resources=resources
    )
    application: Any = policy_deployment(settings, HttpSettings(generation_timeout_s=100))
    deployment = application._bound_deployment
    assert deployment.name == "policy"
    assert deployment.num_replicas == 2
    assert deployment.max_ongoing_requests == 8
    assert deployment.max_queued_requests == 5
    # What is being answered may come to its end.
    assert deployment._deployment_config.graceful_shutdown_timeout_s >= 100
    options = deployment.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (2, 1)
    assert options["resources"] == {"fast": 1}
    assert options["label_selector"] == {"pool": "rollout"}
    environment = options["runtime_env"]["env_vars"]
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_the_engine_is_as_the_settings_say() -> None:
    settings = PolicyServiceSettings(
        path="p", precision="bfloat16", max_model_len=99, tensor_parallel_size=2, max_num_seqs=8
    )
    engine = engine_arguments(settings)
    assert (engine.model, engine.dtype, engine.max_model_len) == ("p", "bfloat16", 99)
    assert (engine.tensor_parallel_size, engine.max_num_seqs) == (2, 8)
    assert engine.distributed_executor_backend == "mp"
    # Without these a seed gives other answers, or an error.
    assert engine.enable_prefix_caching is False
    assert engine.enable_chunked_prefill is False
    # The model's own length.
    assert engine_arguments(PolicyServiceSettings(path="p")).max_model_len is None


def test_compilation_is_off_where_it_is_not_asked_for() -> None:
    assert engine_environment(PolicyServiceSettings(path="p"))["TORCHDYNAMO_DISABLE"] == "1"
    compiled = PolicyServiceSettings(path="p", enforce_eager=False)
    assert engine_environment(compiled)["TORCHDYNAMO_DISABLE"] == "0"


def test_the_gateway_loads_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, rayward.services.gateway.app\n"
        "print([one for one in ('torch', 'transformers', 'vllm') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
