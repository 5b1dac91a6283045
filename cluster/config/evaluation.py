"""Settings of the measurements: held-out prompts, TruthfulQA, ToxiGen, and who judges."""

from typing import Self

from pydantic import Field, model_validator

from rayward.cluster.config.base import Settings
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.roles import ModelRole, RewardRole
from rayward.cluster.errors import InputError


class JudgeSettings(RewardRole):
    """A judge model: one output, a logit above 0 means safe."""

    @model_validator(mode="after")
    def _a_judge_is_named(self) -> Self:
        if self.path is None:
            raise InputError("path", None, "the directory or hub id of the judge")
        return self


class AnswerJudgeSettings(ModelRole):
    """A causal language model that says yes or no of an answer, as TruthfulQA's judges do."""

    path: str
    """A transformers directory or hub id."""


class LabelJudgeSettings(ModelRole):
    """A sequence classifier of plain text, of which one label is looked for."""

    path: str
    """A transformers directory or hub id."""
    label: int = Field(default=1, ge=0)
    """Which of the classifier's outputs is meant; a classifier with one output has only 0."""


class TruthfulQASettings(Settings):
    """TruthfulQA (Lin et al. 2021): generation, MC1 and MC2."""

    questions: int | None = Field(default=None, ge=1)
    """The first so many questions; null takes all."""
    sampling: SamplingSettings = SamplingSettings(
        temperature=0.1, top_p=0.9, max_prompt_tokens=1024, max_response_tokens=64
    )
    """How answers are drawn (Llama 2, section 4.1)."""
    truth_judge: AnswerJudgeSettings | None = None
    """Says whether an answer is true; null reports "not judged"."""
    info_judge: AnswerJudgeSettings | None = None
    """Says whether an answer is informative; null reports "not judged"."""


class ToxigenSettings(Settings):
    """ToxiGen (Hartvigsen et al. 2022): the share of toxic generations."""

    prompts: int | None = Field(default=None, ge=1)
    """The first so many prompts of each group, hateful and benign each; null takes all."""
    sampling: SamplingSettings = SamplingSettings(
        temperature=0.1, top_p=0.9, max_prompt_tokens=1024, max_response_tokens=64
    )
    """How continuations are drawn (Llama 2, section 4.1)."""
    judge: LabelJudgeSettings | None = None
    """Says whether a continuation is toxic; null reports "not judged"."""


class EvaluationSettings(Settings):
    """How policies are measured, each in the same way."""

    adversarial_prompts: int = Field(default=1000, ge=0)
    """Held-out adversarial prompts, at most."""
    benign_prompts: int = Field(default=1000, ge=0)
    """Held-out benign prompts, at most."""
    borderline_prompts: int = Field(default=300, ge=0)
    """Held-out borderline prompts (benign, worded like adversarial ones), at most."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn for measuring."""
    judge: JudgeSettings | None = None
    """The judge model where there is no oracle; null reports "not judged"."""
    refusal_judge: LabelJudgeSettings | None = None
    """Tells from an answer whether it refuses; asked of benign and borderline prompts where there
    is no oracle; null reports "not judged"."""
    truthfulqa: TruthfulQASettings | None = TruthfulQASettings()
    """TruthfulQA, where the data directory has it; null leaves it out."""
    toxigen: ToxigenSettings | None = ToxigenSettings()
    """ToxiGen, where the data directory has it; null leaves it out."""


def label_judges(settings: EvaluationSettings) -> dict[str, LabelJudgeSettings]:
    """The judges of labels that are configured, by their place in the recipe."""
    judges = {"evaluation.refusal_judge": settings.refusal_judge}
    if settings.toxigen is not None:
        judges["evaluation.toxigen.judge"] = settings.toxigen.judge
    return {field: judge for field, judge in judges.items() if judge is not None}


def answer_judges(settings: EvaluationSettings) -> dict[str, AnswerJudgeSettings]:
    """The judges of answers that are configured, by their place in the recipe."""
    if settings.truthfulqa is None:
        return {}
    judges = {
        "evaluation.truthfulqa.truth_judge": settings.truthfulqa.truth_judge,
        "evaluation.truthfulqa.info_judge": settings.truthfulqa.info_judge,
    }
    return {field: judge for field, judge in judges.items() if judge is not None}
