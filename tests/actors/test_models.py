import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from actors.microbatches import length_mask, right_pad
from actors.models import (
    load_causal_lm,
    load_scalar_model,
    load_tokenizer,
    save_model,
    sequence_scores,
    token_values,
    weights_digest,
)
from cluster.errors import InputError
from tests.tiny import tiny_tokenizer, write_tiny_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        return write_tiny_llama(directory)
    tokenizer = tiny_tokenizer()
    if request.param == "qwen2":
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                tie_word_embeddings=True,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=2, n_positions=128)
        )
    save_model(model, tokenizer, directory)
    return directory


ROWS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8], [5, 6, 7, 256]]


def scores_of(model: torch.nn.Module, rows: list[list[int]], fill: int) -> torch.Tensor:
    with torch.no_grad():
        return sequence_scores(model, right_pad(rows, fill), length_mask([len(r) for r in rows]))


def test_scores_ignore_padding_and_batch_mates(directory: Path) -> None:
    model = load_scalar_model(str(directory), "float32", seed=3)
    eos = load_tokenizer(str(directory)).eos_token_id
    alone = torch.cat([scores_of(model, [row], 0) for row in ROWS])
    for fill in (0, eos):
        together = scores_of(model, ROWS, fill)
        assert together.dtype == torch.float32
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert alone.unique().numel() == len(ROWS)


def test_an_ended_answer_scores_differently_where_pad_is_the_end_token(llama: Path) -> None:
    model = load_scalar_model(str(llama), "float32", seed=3)
    eos = load_tokenizer(str(llama)).eos_token_id
    cut, ended = scores_of(model, [[5, 6, 7], [5, 6, 7, eos]], eos)
    assert abs(float(cut - ended)) > 1e-3


def test_token_values_end_in_the_sequence_score(directory: Path) -> None:
    model = load_scalar_model(str(directory), "float32", seed=3)
    lengths = [len(row) for row in ROWS]
    with torch.no_grad():
        values = token_values(model, right_pad(ROWS, 0), length_mask(lengths))
    assert values.shape == (len(ROWS), max(lengths))
    assert values.dtype == torch.float32
    last = torch.stack([values[row, length - 1] for row, length in enumerate(lengths)])
    torch.testing.assert_close(last, scores_of(model, ROWS, 0), atol=1e-6, rtol=0)


def test_the_head_comes_from_the_seed_and_survives_saving(directory: Path, tmp_path: Path) -> None:
    first = load_scalar_model(str(directory), "float32", seed=3)
    torch.manual_seed(99)
    assert weights_digest(load_scalar_model(str(directory), "float32", seed=3)) == weights_digest(
        first
    )
    assert weights_digest(load_scalar_model(str(directory), "float32", seed=4)) != weights_digest(
        first
    )
    assert 0 < float(first.score.weight.detach().std()) < 0.1
    save_model(first, load_tokenizer(str(directory)), tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    again = load_scalar_model(str(tmp_path), "float32", seed=8)
    assert weights_digest(plain) == weights_digest(again) == weights_digest(first)
    assert plain.config.num_labels == 1


def test_dropout_is_off_even_in_training_mode(directory: Path) -> None:
    model = load_scalar_model(str(directory), "float32", seed=3)
    quiet = scores_of(model.eval(), ROWS, 0)
    assert torch.equal(scores_of(model.train(), ROWS, 0), quiet)


def test_a_causal_model_round_trips_in_its_precision(llama: Path, tmp_path: Path) -> None:
    model = load_causal_lm(str(llama), "bfloat16")
    assert model.dtype == torch.bfloat16
    save_model(model, load_tokenizer(str(llama)), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert weights_digest(loaded) == weights_digest(model)


def test_the_digest_sees_one_changed_weight(llama: Path) -> None:
    model = load_causal_lm(str(llama), "float32")
    before = weights_digest(model)
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert weights_digest(model) != before


def broken(source: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_what_is_not_a_model_is_named(llama: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    truncated = broken(llama, tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    unknown = broken(llama, tmp_path / "unknown", model_type="no-such-type")
    other_shape = broken(llama, tmp_path / "shape", hidden_size=32)
    for path in (tmp_path / "absent", empty, truncated, unknown, other_shape):
        for load in (
            lambda path: load_causal_lm(path, "float32", field="ppo.policy.path"),
            lambda path: load_scalar_model(path, "float32", seed=0, field="ppo.policy.path"),
        ):
            with pytest.raises(InputError) as caught:
                load(str(path))
            assert caught.value.field == "ppo.policy.path"
            assert caught.value.value == str(path)


def test_the_wrong_kind_of_model_is_refused(llama: Path, tmp_path: Path) -> None:
    two = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=2)
    save_model(two, load_tokenizer(str(llama)), tmp_path / "two")
    with pytest.raises(InputError, match="one output; it has 2"):
        load_scalar_model(str(tmp_path / "two"), "float32", seed=0)
    reward = load_scalar_model(str(llama), "float32", seed=0)
    save_model(reward, load_tokenizer(str(llama)), tmp_path / "reward")
    with pytest.raises(InputError, match="lm_head"):
        load_causal_lm(str(tmp_path / "reward"), "float32")


def test_a_tokenizer_needs_a_chat_template(llama: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(llama))
    tokenizer.chat_template = None
    shutil.copytree(llama, tmp_path / "bare")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="chat template"):
        load_tokenizer(str(tmp_path / "bare"), field="ppo.safety.path")
