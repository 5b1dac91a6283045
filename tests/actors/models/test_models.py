import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    CTRLConfig,
    PreTrainedModel,
)

from rayward.actors.models.loading import (
    load_causal_lm,
    load_reward_model,
    load_scalar_model,
    load_tokenizer,
    reads_tokens_of,
    save_model,
    sequence_scores,
    token_values,
    weights_digest,
)
from rayward.actors.models.microbatches import length_mask, right_pad
from rayward.cluster.errors import InputError
from tests.tiny import (
    KINDS,
    tiny_tokenizer,
    wordpiece_tokenizer,
    write_tiny,
    write_tiny_classifier,
    write_tiny_llama,
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=list(KINDS))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp(request.param), request.param)


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


def refused(load: Callable[[], PreTrainedModel]) -> str:
    with pytest.raises(InputError) as caught:
        load()
    assert caught.value.field == "ppo.safety.path"
    return caught.value.expected


def test_the_wrong_kind_of_model_is_refused(llama: Path, tmp_path: Path) -> None:
    field = "ppo.safety.path"
    two = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=2)
    save_model(two, load_tokenizer(str(llama)), tmp_path / "two")
    path = str(tmp_path / "two")
    one = "a model with one output; it has 2"
    assert refused(lambda: load_scalar_model(path, "float32", 0, field)) == one
    assert refused(lambda: load_reward_model(path, "float32", field)) == one
    said = refused(lambda: load_causal_lm(path, "float32", field))
    assert said.endswith("causal language model; it is a LlamaForSequenceClassification")
    # A head that has learned nothing is for training, not for judging.
    said = refused(lambda: load_reward_model(str(llama), "float32", field))
    assert said.endswith("with one output; it is a LlamaForCausalLM")
    # BERT's own head would load as a causal language model's, and predict what it sees.
    masked = tmp_path / "masked"
    BertForMaskedLM(BertConfig(hidden_size=24, num_hidden_layers=1)).save_pretrained(masked)
    said = refused(lambda: load_causal_lm(str(masked), "float32", field))
    assert said.endswith("causal language model; it is a BertForMaskedLM")
    bert = str(write_tiny_classifier(tmp_path / "bert"))
    said = refused(lambda: load_scalar_model(bert, "float32", 0, field))
    assert said.endswith("bert has no head for every token")


def test_a_classifier_that_lacks_its_head_is_refused(tmp_path: Path) -> None:
    path = write_tiny_classifier(tmp_path)
    weights = load_file(path / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    said = refused(lambda: load_reward_model(str(path), "float32", "ppo.safety.path"))
    assert said.endswith("with one output; it lacks the weights classifier.weight")


def test_a_decoders_head_is_found_whatever_its_name(tmp_path: Path) -> None:
    """CTRL calls it `classifier`."""
    config = CTRLConfig(vocab_size=300, n_embd=32, n_layer=1, n_head=2, dff=32, n_positions=64)
    path = str(write_tiny_classifier(tmp_path, config, tiny_tokenizer()))
    model = load_scalar_model(path, "float32", seed=0)
    with torch.no_grad():
        values = token_values(model, right_pad(ROWS, 0), length_mask([len(row) for row in ROWS]))
    plain = AutoModelForSequenceClassification.from_pretrained(path)
    plain.config.pad_token_id = None
    for row, own in zip(ROWS, values, strict=True):
        with torch.no_grad():
            assert float(own[len(row) - 1]) == pytest.approx(
                plain(torch.tensor([row])).logits.item(), abs=1e-6
            )


def test_a_critic_is_a_decoder_that_speaks_the_policys_tokens(
    directory: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(directory))
    assert reads_tokens_of(str(directory), tokenizer, "ppo.critic.path")
    scalar = load_scalar_model(str(directory), "float32", seed=0)
    save_model(scalar, tokenizer, tmp_path / "scalar")
    assert reads_tokens_of(str(tmp_path / "scalar"), tokenizer, "ppo.critic.path")
    save_model(scalar, wordpiece_tokenizer(), tmp_path / "other")
    assert not reads_tokens_of(str(tmp_path / "other"), tokenizer, "ppo.critic.path")
    # An encoder has one score for a whole conversation, and none for a token of it.
    encoder = write_tiny_classifier(tmp_path / "bert")
    tokenizer.save_pretrained(encoder)
    assert not reads_tokens_of(str(encoder), tokenizer, "ppo.critic.path")
    with pytest.raises(InputError, match=r"ppo\.critic\.path: got 'nowhere/"):
        reads_tokens_of("nowhere/at/all", tokenizer, "ppo.critic.path")


def test_a_tokenizer_needs_a_chat_template(llama: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(llama))
    tokenizer.chat_template = None
    shutil.copytree(llama, tmp_path / "bare")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="chat template"):
        load_tokenizer(str(tmp_path / "bare"), field="ppo.safety.path")
