"""A score that is infinite is as little a number as one that is NaN: nobody may go by it."""

from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch

from rayward.actors.models.loading import load_scalar_model, load_tokenizer, save_model
from rayward.actors.scoring.answer_judge import AnswerJudge
from rayward.actors.scoring.label_judge import LabelJudge
from rayward.actors.scoring.reward_model import RewardModel
from rayward.cluster.config.evaluation import AnswerJudgeSettings, LabelJudgeSettings
from rayward.cluster.config.roles import ReplicatedRewardRole
from rayward.cluster.errors import UnscoredError
from tests.tiny import write_tiny_llama
from tests.tiny_judges import write_constant_judge, write_toxicity_classifier


def test_an_infinite_reward_is_an_error(tmp_path: Path) -> None:
    policy = str(write_tiny_llama(tmp_path / "policy"))
    model = load_scalar_model(policy, "float32", seed=3)
    # Of the last hidden state one number alone counts, and whatever it is, it counts infinitely.
    with torch.no_grad():
        model.score.weight.zero_()
        model.score.weight[0, 0] = inf
    save_model(model, load_tokenizer(policy), tmp_path / "reward")
    path = str(tmp_path / "reward")
    reward_model = RewardModel("safety", path, ReplicatedRewardRole(), policy)
    sequences = [[5, 6, 7], [8, 9]]
    logits = reward_model.passes.run(sequences, fixed=True)
    assert np.isinf(logits).all()
    with pytest.raises(UnscoredError, match="safety: 2 of 2 scores are not finite"):
        reward_model.score_tokens(sequences)


def test_an_infinite_output_is_no_verdict(tmp_path: Path) -> None:
    path = write_toxicity_classifier(tmp_path, bias=[0.0, inf])
    judge = LabelJudge(LabelJudgeSettings(path=str(path), label=1), "evaluation.toxigen.judge")
    with pytest.raises(UnscoredError, match="outputs for 1 of 1 texts are not finite"):
        judge.has_label(["a"])


def test_a_yes_that_is_impossible_is_no_verdict(tmp_path: Path) -> None:
    # Three letters of a logprob of -2e38 each: their sum is beyond float32.
    path = write_constant_judge(tmp_path, letter_logit=-2e38)
    judge = AnswerJudge("truth", AnswerJudgeSettings(path=str(path)))
    with pytest.raises(UnscoredError, match="truth judge: 1 of 2 logprobs are not finite"):
        judge.yes_logits(["?"], ["x"])
