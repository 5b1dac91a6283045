"""What is wrong with a fit is told by the place of its settings in the recipe: one of several."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from rayward.actors.models.loading import load_tokenizer
from rayward.cluster.config.load import parse_recipe
from rayward.cluster.config.roles import LoRASettings
from rayward.cluster.config.supervised import RewardTrainingSettings, SFTSettings
from rayward.cluster.errors import InputError, RunStopped
from rayward.cluster.records.best_samples import BestSample, write_best
from rayward.cluster.records.distilled import DistilledSample, Preprompt, write_distilled
from rayward.cluster.records.plan import PlannedStage
from rayward.cluster.types import Axis, Demonstration, Message, PreferencePair, Prompt
from rayward.pipelines.stage import stage_of
from rayward.pipelines.supervised import policies
from rayward.pipelines.supervised.loop import Job, SupervisedTask, run_rank
from rayward.pipelines.supervised.reward_model import RewardTask
from rayward.pipelines.supervised.sft import SFTTask
from tests.tiny import write_tiny_llama

FIT = "rejection_sampling.fit"
PROMPT = Prompt("p", (Message("user", "q"),), None, None, False, False, "test")
SHOWN = Demonstration(PROMPT, "a")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("model")))


def test_layers_that_are_not_there(llama: str) -> None:
    settings = SFTSettings(lora=LoRASettings(target_modules=["query"]))
    with pytest.raises(InputError) as caught:
        SFTTask(llama, [], [], settings, 0, FIT).load_model("float32")
    assert caught.value.field == "rejection_sampling.fit.lora.target_modules"


def test_turns_that_cannot_be_learned(llama: str) -> None:
    tokenizer = load_tokenizer(llama)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' }}{% endfor %}"
    )
    talk = (*PROMPT.messages, Message("assistant", "a"), *PROMPT.messages)
    shown = replace(SHOWN, prompt=replace(PROMPT, messages=talk))
    task = SFTTask(llama, [shown], [], SFTSettings(loss_on="all_assistant_turns"), 0, FIT)
    with pytest.raises(InputError, match="final_turn") as caught:
        task.rows(tokenizer)
    assert caught.value.field == "rejection_sampling.fit.loss_on"


def fits(llama: str) -> dict[str, SupervisedTask[Any]]:
    rewards: dict[str, Axis] = {"reward_safety": "safety", "reward_helpfulness": "helpfulness"}
    pair = PreferencePair(PROMPT, "a", "b", "safety", None, None, None)
    own = RewardTrainingSettings()
    return {
        **{name: SFTTask(llama, [SHOWN], [], SFTSettings(), 0, name) for name in ("sft", FIT)},
        **{name: RewardTask(llama, axis, [pair], [], own, 0) for name, axis in rewards.items()},
    }


def test_a_model_that_cannot_recompute(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaPreTrainedModel, "supports_gradient_checkpointing", False)
    for section, task in fits(llama).items():
        settings = SFTSettings(gradient_checkpointing=True)
        job = Job(task, settings, tmp_path / "out", 0, reports=Mock())
        with pytest.raises(InputError) as caught:
            run_rank(job, rank=0, ranks=1)
        assert caught.value.field == f"{section}.gradient_checkpointing"


@pytest.mark.parametrize(
    ("stage", "section"),
    [
        ("sft", "sft"),
        ("safety_sft", "safety_sft"),
        ("rejection_sampling", "rejection_sampling.fit"),
        ("context_distillation", "context_distillation.fit"),
    ],
)
def test_every_stage_tells_its_fit_where_the_settings_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str, section: str
) -> None:
    """It is the one fit that it declares, with the settings that stand there."""
    train = Mock(side_effect=RunStopped)
    monkeypatch.setattr(policies, "train_sft", train)
    recipe = parse_recipe({"name": "t", "data": {"path": "d"}, "model": {"path": "m"}})
    write_best(tmp_path, [BestSample(PROMPT, "a", 1.0, 1)])
    tried = Preprompt("p", "generic", "be safe")
    write_distilled(tmp_path, [DistilledSample(PROMPT, tried, "a", 0.0, "b", 1.0, kept=True)])
    (tmp_path / "report.json").write_text('{"sampling_seconds": 1.0}')
    data = Mock(demonstrations=[SHOWN], held_out_demonstrations=[], safety_demonstrations=[SHOWN])
    context = Mock(recipe=recipe, data=data, output=Mock(return_value=tmp_path))
    planned = PlannedStage(stage, 1, stage, "start", {}, ())
    with pytest.raises(RunStopped):
        stage_of(stage).run(context, planned)
    ((declared, settings),) = stage_of(stage).fits(recipe).items()
    assert declared == section
    assert train.call_args.args[3] == settings
    assert train.call_args.args[-1] == section
