"""Memory of a process, part by part, worked out by hand."""

from dataclasses import replace

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from rayward.cluster.config.roles import DeepSpeedSettings, LoRASettings
from rayward.k8s.memory import Memory, kv_bytes, lora_parameters, scoring, trained
from rayward.k8s.shapes import LLAMA_2
from rayward.k8s.sizing import size
from tests.k8s.test_sizing import recipe, roles

SEVEN = LLAMA_2["7B"]


def test_zero_splits_what_it_says() -> None:
    """1000 parameters on 4 ranks; in bfloat16 20 bytes for each: ZeRO's 16 and 4 for the sums."""
    shape = replace(SEVEN, parameters=1000)

    def parts(precision: str, stage: int) -> tuple[float, float, float]:
        deepspeed = DeepSpeedSettings.model_validate({"ranks": 4, "zero_stage": stage})
        found = trained(shape, 1000, precision, deepspeed, 0, 0, False)  # type: ignore[arg-type]
        return found.weights, found.gradients, found.optimizer

    assert parts("bfloat16", 1) == parts("bfloat16", 0) == (2000, 6000, 3000)
    assert parts("bfloat16", 2) == (2000, 1500, 3000)
    assert parts("bfloat16", 3) == (500, 1500, 3000)
    assert sum(parts("bfloat16", 3)) == 20 * 1000 / 4
    # In float32 the 16 bytes are weights, gradients and two moments; ZeRO has a copy besides.
    assert parts("float32", 0) == (4000, 4000, 8000)
    assert parts("float32", 1) == (4000, 4000, 3000)
    assert parts("float32", 3) == (1000, 1000, 3000)


def test_zeros_own_buffers_are_as_large_as_deepspeed_makes_them() -> None:
    config = DeepSpeedZeroConfig(stage=3)
    assert config.max_live_parameters + config.prefetch_bucket_size == 1_050_000_000
    assert (config.reduce_bucket_size, config.sub_group_size) == (500_000_000, 1_000_000_000)

    def parts(precision: str, stage: int, parameters: int) -> tuple[float, float, float]:
        deepspeed = DeepSpeedSettings.model_validate({"ranks": 4, "zero_stage": stage})
        found = trained(SEVEN, parameters, precision, deepspeed, 0, 0, False)  # type: ignore[arg-type]
        return found.gathered, found.buckets, found.stepping

    # Large models meet the limits; those that are small do not.
    assert parts("bfloat16", 3, 10**10) == (2 * 1.05e9, 6 * 5e8, 8e9)
    assert parts("bfloat16", 2, 10**10) == (0, 6 * 5e8, 8 * 2.5e9)
    assert parts("bfloat16", 3, 1000) == (2000, 6000, 2000)
    assert parts("float32", 3, 1000) == (4000, 4000, 2000)
    assert parts("float32", 0, 1000) == (0, 0, 4000)


def test_what_is_there_at_a_time() -> None:
    """Activations are gone when the optimizer steps; the whole weights before all of it."""
    one = Memory(1, 2, 3, activations=10, kv_cache=20, logits=30, gathered=40, buckets=4, context=5)
    assert one.total == 5 + 10 + 100
    assert replace(one, stepping=101).total == 5 + 10 + 101
    assert replace(one, loading=1000).total == 5 + 1000


def test_activations_and_logits() -> None:
    """Per token and layer 8 x 4096 + 4 x 11008 = 76,800 elements; inputs alone are 4096."""
    one = DeepSpeedSettings()
    kept = trained(SEVEN, 0, "bfloat16", one, 10, 3, False)
    assert kept.activations == 2 * 32 * 76_800 * 10
    assert kept.logits == 3 * 32_000 * (2 + 4 + 4 + 4)
    again = trained(SEVEN, 0, "bfloat16", one, 10, 3, True)
    assert again.activations == 2 * (32 * 4096 + 76_800) * 10
    assert trained(SEVEN, 0, "float32", one, 10, 3, True).activations == 2 * again.activations
    forward = scoring(SEVEN, 1000, "bfloat16", 10, 3)
    assert (forward.weights, forward.activations) == (2000, 2 * 76_800 * 10)
    assert forward.logits == 3 * 32_000 * (2 + 4 + 4)
    assert (forward.gradients, forward.optimizer, forward.loading) == (0, 0, 0)


def test_keys_and_values() -> None:
    """Half a MiB per token of 7B; 70B has 8 key-value heads of 128 in 80 layers."""
    assert kv_bytes(SEVEN, "bfloat16") == 2 * 32 * 4096 * 2 == 512 * 1024
    assert kv_bytes(LLAMA_2["70B"], "bfloat16") == 2 * 80 * 1024 * 2
    assert kv_bytes(SEVEN, "float32") == 1024 * 1024


def test_adapters_train_little() -> None:
    """Rank 8: 8 x 32 layers x (4 x 8192 for attention + 3 x 15104) for all linear layers."""
    lora = LoRASettings(rank=8)
    assert lora_parameters(SEVEN, lora) == 8 * 32 * (4 * 8192 + 3 * 15_104)
    chosen = LoRASettings(rank=8, target_modules=["q_proj", "v_proj"])
    assert lora_parameters(SEVEN, chosen) == 8 * 32 * 2 * 8192
    found = roles(size(recipe("ppo.policy.lora={rank: 8}", "stages=[sft, reward_safety, "
                              "reward_helpfulness, ppo]"), SEVEN, 80))  # fmt: skip
    trainable = 8 * 32 * (4 * 8192 + 3 * 15_104)
    assert found["policy"].memory.weights == 4 * SEVEN.parameters
    assert found["policy"].memory.optimizer == 8 * trainable
