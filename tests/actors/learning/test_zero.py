"""What `make_engine` makes of a model: precisions, recomputed activations, whole states."""

import pickle
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rayward.actors.learning.zero import (
    full_weights,
    gradient_norm,
    join_process_group,
    make_engine,
    recompute_activations,
)
from rayward.actors.models.loading import load_causal_lm
from rayward.cluster.config.roles import DeepSpeedSettings, OptimizerSettings, Precision
from rayward.cluster.errors import InputError
from tests import preloaded
from tests.tiny import write_tiny, write_tiny_llama

STEPS = 6
ROWS, LENGTH = 8, 20


@dataclass(frozen=True)
class Trained:
    """What an engine reported of each step."""

    losses: list[float]
    norms: list[float]


def train(model: str, zero_stage: int, precision: Precision) -> Trained:
    engine = make_engine(
        load_causal_lm(model, precision),
        OptimizerSettings(learning_rate=1e-3),
        DeepSpeedSettings(zero_stage=zero_stage),
        precision,
    )
    ids = torch.randint(0, 250, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    losses, norms = [], []
    for _ in range(STEPS):
        total = 0.0
        for row in ids.split(1):
            loss = engine(input_ids=row, labels=row, use_cache=False).loss.float() / ROWS
            engine.backward(loss, scale_wrt_gas=False)
            total += float(loss.detach())
        engine.step()
        losses.append(total)
        norms.append(gradient_norm(engine))
    return Trained(losses, norms)


def train_all(model: str, result: Path) -> None:
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    join_process_group(0, 1, "127.0.0.1", port)
    kinds: list[tuple[int, Precision]] = [(stage, "bfloat16") for stage in (0, 1, 2, 3)]
    trained = {kind: train(model, *kind) for kind in [(0, "float32"), *kinds]}
    result.write_bytes(pickle.dumps(trained))


@pytest.mark.slow
def test_bfloat16_learns_what_float32_does_at_every_stage(tmp_path: Path, preloading: None) -> None:
    model = str(write_tiny_llama(tmp_path / "model"))
    assert preloaded.call(train_all, model, tmp_path / "trained.pkl").wait() == 0
    trained: dict[tuple[int, Precision], Trained]
    trained = pickle.loads((tmp_path / "trained.pkl").read_bytes())
    exact = trained.pop((0, "float32"))
    assert exact.losses[-1] < exact.losses[0] - 0.3
    assert len(trained) == 4
    for one in trained.values():
        # A number in bfloat16 is off by up to 2 ** -9 of itself, and so may a loss be. The norm is
        # of gradients that have passed through twice as many of them.
        # What an optimizer that starts with an empty step of Adam makes is off by 2 ** -7.5.
        assert one.losses == pytest.approx(exact.losses, rel=2**-9)
        assert one.norms == pytest.approx(exact.norms, rel=2**-8)
    # Without ZeRO it is stage 1 that runs, on one rank as on several.
    assert trained[0, "bfloat16"] == trained[1, "bfloat16"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_recomputed_activations_give_the_same_gradients(tmp_path: Path, kind: str) -> None:
    path = str(write_tiny(tmp_path, kind))
    ids = torch.arange(10, 30).reshape(2, 10)
    losses, gradients, passes = [], [], []
    for recompute in (False, True):
        model = load_causal_lm(path, "float32")
        if recompute:
            recompute_activations(model, "ppo.policy.gradient_checkpointing")
        layer = model.get_submodule({"llama": "model.layers.1", "gpt2": "transformer.h.1"}[kind])
        seen: list[int] = []
        next(layer.children()).register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: own.grad for name, own in model.named_parameters()})
        passes.append(len(seen))
    assert passes == [1, 2]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=0)


def test_a_model_that_cannot_recompute_is_refused(tmp_path: Path) -> None:
    model = load_causal_lm(str(write_tiny_llama(tmp_path)), "float32")
    model.supports_gradient_checkpointing = False
    with pytest.raises(InputError, match="expected false, because LlamaForCausalLM") as caught:
        recompute_activations(model, "ppo.critic.gradient_checkpointing")
    assert caught.value.field == "ppo.critic.gradient_checkpointing"


def test_the_whole_state_has_the_buffers_that_belong_to_it(tmp_path: Path) -> None:
    model = load_causal_lm(str(write_tiny_llama(tmp_path)), "float32")
    model.register_buffer("router_bias", torch.tensor([1.0, 2.0]))
    model.register_buffer("scratch", torch.tensor([3.0]), persistent=False)
    weights = full_weights(model, keep=True)
    assert weights.keys() == model.state_dict().keys()
    assert weights["router_bias"].tolist() == [1.0, 2.0]
    assert full_weights(model, keep=False) == {}
