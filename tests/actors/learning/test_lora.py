"""Adapters: what they change, what they amount to, and who can read them."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rayward.actors.learning.lora import adapter_weights, add_adapters, save_adapter, whole_weights
from rayward.actors.learning.weight_sync import ModelSource
from rayward.actors.learning.zero import copies, full_weights
from rayward.actors.models.loading import load_causal_lm, load_tokenizer
from rayward.cluster.config.roles import LoRASettings
from rayward.cluster.errors import InputError
from tests import preloaded
from tests.tiny import TEMPLATE, write_tiny, write_tiny_llama

FIELD = "ppo.policy.lora"
SETTINGS = LoRASettings(rank=4, alpha=6.0)
IDS = torch.arange(5, 15).unsqueeze(0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("llama")))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
        return result


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: own for name, own in model.named_parameters() if own.requires_grad}


def adapted(path: str, settings: LoRASettings = SETTINGS) -> tuple[PreTrainedModel, LoraConfig]:
    """A model whose adapters have learned something."""
    model = load_causal_lm(path, "float32")
    config = add_adapters(model, settings, 0, FIELD)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return model, config


def test_new_adapters_change_nothing_and_come_from_the_seed(llama: str) -> None:
    plain = load_causal_lm(llama, "float32")
    before = torch.random.get_rng_state()
    first, again, other = (load_causal_lm(llama, "float32") for _ in range(3))
    add_adapters(first, SETTINGS, 0, FIELD)
    add_adapters(again, SETTINGS, 0, FIELD)
    add_adapters(other, SETTINGS, 1, FIELD)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(logits(first), logits(plain))
    # Two layers of seven matrices, an A and a B for each.
    assert len(trained(first)) == 2 * 7 * 2
    for name, own in trained(first).items():
        assert torch.equal(own, trained(again)[name])
        assert torch.equal(own, trained(other)[name]) == ("lora_B" in name)
    first.train()
    assert torch.equal(logits(first), logits(first))  # nothing is dropped


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "qwen2", "gpt2"])
def test_whole_weights_are_those_of_a_model_that_computes_the_same(
    tmp_path: Path, kind: str
) -> None:
    path = str(write_tiny(tmp_path, kind))
    model, config = adapted(path)
    plain = load_causal_lm(path, "float32")
    before = logits(plain)
    weights = full_weights(model, keep=True)
    assert list(weights) == [name for name, _ in plain.named_parameters()]
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=0)
    assert (logits(plain) - before).abs().max() > 0.01
    assert config.fan_in_fan_out == (kind == "gpt2")
    # What vLLM gets at a weight sync is the same.
    source = ModelSource(model)
    for meta, (name, sent) in zip(source.metadata(), source, strict=True):
        assert (meta.name, meta.dtype, meta.shape) == (name, sent.dtype, tuple(sent.shape))
        assert torch.equal(sent, weights[name])


def test_a_merged_weight_by_hand(llama: str) -> None:
    settings = LoRASettings(rank=1, alpha=3.0, target_modules=["q_proj"])
    model = load_causal_lm(llama, "float32")
    add_adapters(model, settings, 0, FIELD)
    layer = model.get_submodule("model.layers.1.self_attn.q_proj")
    weight = layer.base_layer.weight.clone()
    with torch.no_grad():
        layer.lora_A["default"].weight.zero_()[0, 5] = 2.0
        layer.lora_B["default"].weight.zero_()[7, 0] = 0.5
    merged = {one.name: one.value() for one in whole_weights(model)}
    # B A is 1 at row 7 of the outputs, column 5 of the inputs; alpha / rank is 3.
    weight[7, 5] += 3.0
    assert torch.equal(merged["model.layers.1.self_attn.q_proj.weight"], weight)
    assert len(trained(model)) == 2 * 2  # nothing but q_proj, in two layers


@pytest.fixture(scope="module")
def saved(llama: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter's directory, and what the model says with it."""
    directory = tmp_path_factory.mktemp("adapter") / "new"
    model, config = adapted(llama)
    weights = copies(adapter_weights(model), keep=True)
    save_adapter(model, config, llama, load_tokenizer(llama), directory, weights)
    return directory, logits(model)


def test_transformers_and_peft_load_the_adapter(
    saved: tuple[Path, torch.Tensor], llama: str
) -> None:
    directory, said = saved
    for loader in (AutoModelForCausalLM, AutoPeftModelForCausalLM):
        torch.testing.assert_close(
            logits(loader.from_pretrained(directory)), said, atol=1e-6, rtol=0
        )
    assert AutoTokenizer.from_pretrained(directory).chat_template == TEMPLATE
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == llama
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 6.0, 0.0)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {path.suffix for path in directory.iterdir()} == {".json", ".jinja", ".safetensors"}
    assert not (directory / "model.safetensors").exists()


def sample(llama: str, adapter: Path, result: Path) -> None:
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_NO_USAGE_STATS="1",
        TORCHDYNAMO_DISABLE="1",
    )
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    engine = LLM(
        model=llama,
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=64,
        max_num_seqs=4,
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=8,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
    )
    parameters = SamplingParams(max_tokens=8, seed=0, logprobs=0, detokenize=False)
    prompt = TokensPrompt(prompt_token_ids=IDS[0].tolist())
    said = []
    for request in (None, LoRARequest("new", 1, str(adapter))):
        (output,) = engine.generate([prompt], parameters, lora_request=request, use_tqdm=False)
        tokens = list(output.outputs[0].token_ids)
        steps = output.outputs[0].logprobs
        said.append((tokens, [step[t].logprob for step, t in zip(steps, tokens, strict=True)]))
    result.write_bytes(pickle.dumps(said))


@pytest.mark.slow
def test_vllm_serves_the_adapter(
    saved: tuple[Path, torch.Tensor], llama: str, tmp_path: Path, preloading: None
) -> None:
    assert preloaded.call(sample, llama, saved[0], tmp_path / "said.pkl").wait() == 0
    plain, with_adapter = pickle.loads((tmp_path / "said.pkl").read_bytes())
    models = [load_causal_lm(llama, "float32"), AutoModelForCausalLM.from_pretrained(saved[0])]

    def logprobs(model: nn.Module, tokens: list[int]) -> list[float]:
        ids = torch.cat([IDS[0], torch.tensor(tokens)]).unsqueeze(0)
        with torch.no_grad():
            table = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        return [float(table[IDS.shape[1] - 1 + i, token]) for i, token in enumerate(tokens)]

    for model, (tokens, said) in zip(models, (plain, with_adapter), strict=True):
        assert logprobs(model, tokens) == pytest.approx(said, abs=1e-4)
    # Without the adapter it would have said otherwise.
    otherwise = logprobs(models[0], with_adapter[0])
    assert otherwise != pytest.approx(with_adapter[1], abs=0.01)


@pytest.mark.parametrize("name", ["q", "embed_tokens", "self_attn", "layers.0.mlp"])
def test_a_name_of_no_linear_layer_is_refused(llama: str, name: str) -> None:
    model = load_causal_lm(llama, "float32")
    settings = LoRASettings(target_modules=["q_proj", name])
    with pytest.raises(InputError, match="which here are down_proj, gate_proj, k_proj") as caught:
        add_adapters(model, settings, 0, FIELD)
    assert (caught.value.field, caught.value.value) == ("ppo.policy.lora.target_modules", name)


def test_a_head_that_is_the_embedding_gets_no_adapter(tmp_path: Path) -> None:
    model = load_causal_lm(str(write_tiny(tmp_path, "llama_tied")), "float32")
    with pytest.raises(InputError, match="this one's are the embedding's"):
        add_adapters(model, LoRASettings(target_modules=["lm_head"]), 0, FIELD)
