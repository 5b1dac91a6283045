"""Packed layers compute what the layers they stand for compute, and are found where it pays."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rayward.actors.models.loading import load_reward_model, sequence_scores, weights_digest
from rayward.actors.scoring.packed_linear import PackedLinear, pack_linears
from tests.serving import write_models
from tests.tiny import write_tiny_classifier


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 130), (384, 1024)])
def test_a_packed_layer_computes_what_the_layer_did(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias).requires_grad_(False)
    packed = PackedLinear(linear)
    for shape in ((inputs,), (3, inputs), (2, 5, inputs), (0, inputs)):
        x = torch.randn(shape)
        assert torch.allclose(packed(x), linear(x), rtol=1e-5, atol=1e-5)
    turned = torch.randn(inputs, 4).T
    assert torch.allclose(packed(turned), linear(turned), rtol=1e-5, atol=1e-5)


def test_rows_have_the_same_bits_in_any_number_of_rows_and_threads() -> None:
    torch.manual_seed(0)
    packed = PackedLinear(nn.Linear(384, 1024).requires_grad_(False))
    x = torch.randn(8, 64, 384)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = packed(x)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for rows in (1, 2, 3, 8):
                assert torch.equal(packed(x[:rows]), whole[:rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_model_keeps_its_weights_and_its_scores(kind: str, tmp_path: Path) -> None:
    if kind == "decoder":
        path = write_models(tmp_path) / "safety"
    else:
        path = write_tiny_classifier(tmp_path)
    plain = load_reward_model(str(path), "float32", "path").eval().requires_grad_(False)
    packed = load_reward_model(str(path), "float32", "path").eval().requires_grad_(False)
    pack_linears(packed)
    unpacked = {name for name, one in packed.named_modules() if type(one) is nn.Linear}
    assert unpacked == ({"score"} if kind == "decoder" else set())
    layers = [one for one in packed.modules() if isinstance(one, PackedLinear)]
    assert len(layers) == sum(isinstance(one, nn.Linear) for one in plain.modules()) - len(unpacked)
    assert weights_digest(packed) == weights_digest(plain)
    ids = torch.arange(5, 29).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    expected = sequence_scores(plain, ids, mask)
    assert expected[0] != expected[1]
    assert torch.allclose(sequence_scores(packed, ids, mask), expected, rtol=1e-5, atol=1e-5)
