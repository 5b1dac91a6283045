"""A classifier's verdicts, held against transformers and against outputs that are known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rayward.actors.scoring.label_judge import LabelJudge
from rayward.cluster.config.evaluation import LabelJudgeSettings
from rayward.cluster.errors import InputError, UnscoredError
from tests.tiny import write_tiny
from tests.tiny_judges import write_toxicity_classifier

FIELD = "evaluation.toxigen.judge"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = [LETTERS[i % 26] * (1 + i % 9) + " " + LETTERS[: i % 17] for i in range(40)]


def judge(path: Path, label: int = 1) -> LabelJudge:
    return LabelJudge(LabelJudgeSettings(path=str(path), label=label), FIELD)


def alone(path: Path, texts: list[str]) -> torch.Tensor:
    """What transformers gives for each text by itself: [N, labels]."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    return torch.stack(rows)


@pytest.mark.parametrize("label", [0, 1])
def test_two_labels_go_by_the_likelier_one(tmp_path: Path, label: int) -> None:
    path = write_toxicity_classifier(tmp_path)
    outputs = alone(path, TEXTS)
    # So far from a tie that padding cannot turn a verdict.
    assert (outputs[:, 0] - outputs[:, 1]).abs().min() > 1e-4
    expected = (outputs.argmax(1) == label).tolist()
    assert len(set(expected)) == 2
    verdicts = judge(path, label).has_label(TEXTS)
    assert verdicts.dtype == np.bool_
    assert verdicts.tolist() == expected
    assert judge(path, label).has_label(TEXTS[::-1]).tolist() == expected[::-1]


@pytest.mark.parametrize(
    ("outputs", "problem_type", "label", "toxic"),
    [
        ([1.0, 2.0], None, 1, True),
        ([1.0, 2.0], None, 0, False),
        # The likeliest of three has a probability below a half: arg-max is what counts.
        ([1.0, 1.2, 1.1], None, 1, True),
        ([-0.1], None, 0, False),
        ([0.1], None, 0, True),
        # Labels that do not exclude one another: the toxic one's sigmoid alone.
        ([-1.0, -0.5, -2.0], "multi_label_classification", 1, False),
        ([3.0, 0.5, -2.0], "multi_label_classification", 1, True),
    ],
)
def test_known_outputs_have_known_verdicts(
    tmp_path: Path, outputs: list[float], problem_type: str | None, label: int, toxic: bool
) -> None:
    path = write_toxicity_classifier(tmp_path, len(outputs), outputs, problem_type)
    assert judge(path, label).has_label(["some text", "x"]).tolist() == [toxic, toxic]


def test_a_label_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write_toxicity_classifier(tmp_path, labels=1)
    with pytest.raises(InputError) as caught:
        judge(path, 1)
    assert str(caught.value) == (
        "evaluation.toxigen.judge.label: got 1, expected below 1, as many outputs as the "
        "classifier has"
    )


def test_a_path_that_is_no_classifier_is_named(tmp_path: Path) -> None:
    path = write_tiny(tmp_path, "llama")
    with pytest.raises(InputError, match=r"evaluation\.toxigen\.judge\.path.*a LlamaForCausalLM"):
        judge(path)


def test_what_is_too_long_or_not_finite_is_no_verdict(tmp_path: Path) -> None:
    path = write_toxicity_classifier(tmp_path / "long")
    assert judge(path).has_label(["x " * 128]).shape == (1,)
    message = r"toxigen\.judge: 1 of 2 texts are longer than the model's 128 tokens; .* has 129"
    with pytest.raises(UnscoredError, match=message):
        judge(path).has_label(["x", "x " * 129])
    path = write_toxicity_classifier(tmp_path / "nan", bias=[0.0, math.nan])
    with pytest.raises(UnscoredError, match="outputs for 2 of 2 texts are not finite"):
        judge(path).has_label(["x", "y"])
