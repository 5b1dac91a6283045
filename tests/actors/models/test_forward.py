"""Logprobs and values of response tokens, as the model by itself would give them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from rayward.actors.models.forward import response_logprobs, response_values, split_rows
from rayward.actors.models.loading import load_causal_lm, load_scalar_model
from rayward.cluster.types import Prompt, Rollout
from tests.tiny import KINDS, write_tiny

TEMPERATURE = 0.7
ROWS = [([5, 6, 7], [8, 9]), ([1], [2, 3, 4, 5, 6]), ([9] * 7, [4])]


def rollout(prompt: list[int], response: list[int]) -> Rollout:
    nobody = Prompt("p", (), None, None, False, False, "test")
    ids, none = np.array(prompt + response), np.zeros(len(response), np.float32)
    return Rollout(nobody, 0, 0, ids, len(prompt), none, "stop")


ROLLOUTS = [rollout(prompt, response) for prompt, response in ROWS]


class KeepsAll(LlamaForCausalLM):
    """An architecture that knows no `logits_to_keep`."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool
    ) -> CausalLMOutputWithPast:
        return super().forward(input_ids, attention_mask, use_cache=use_cache)


@pytest.fixture(scope="module", params=[*KINDS, "keeps_all"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = "llama" if request.param == "keeps_all" else request.param
    return write_tiny(tmp_path_factory.mktemp(request.param), kind)


def causal_lm(directory: Path) -> PreTrainedModel:
    if directory.name.startswith("keeps_all"):
        return KeepsAll.from_pretrained(directory)
    return load_causal_lm(str(directory), "float32")


def test_logprobs_are_those_of_each_row_alone(directory: Path) -> None:
    model = causal_lm(directory)
    with torch.no_grad():
        flat, _ = response_logprobs(model, ROLLOUTS, TEMPERATURE, with_entropy=False)
        for (prompt, response), ours in zip(ROWS, split_rows(flat, ROLLOUTS), strict=True):
            ids = torch.tensor([prompt + response])
            whole = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
            ).logits[0]
            expected = torch.log_softmax(whole / TEMPERATURE, dim=-1)
            for position, token in enumerate(response, start=len(prompt)):
                theirs = float(expected[position - 1, token])
                assert float(ours[position - len(prompt)]) == pytest.approx(theirs, abs=1e-5)


def test_values_are_read_before_each_response_token(directory: Path) -> None:
    model = load_scalar_model(str(directory), "float32", seed=3)
    with torch.no_grad():
        flat = response_values(model, ROLLOUTS)
        for (prompt, response), ours in zip(ROWS, split_rows(flat, ROLLOUTS), strict=True):
            hidden = model.base_model(torch.tensor([prompt + response])).last_hidden_state
            expected = model.score(hidden)[0, len(prompt) - 1 : -1, 0]
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
