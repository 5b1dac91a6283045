"""What measurements and gates ask of a recipe before anything is started."""

from collections.abc import Sequence

from rayward.actors.models.kinds import positions
from rayward.actors.scoring.label_judge import check_label_judge
from rayward.cluster.config.evaluation import answer_judges, label_judges
from rayward.cluster.errors import InputError
from rayward.cluster.records.plan import measured_policies
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.run.models import (
    KnownModels,
    causal_lm,
    check_reward_model,
    require_room,
)
from rayward.pipelines.stage import Asked


def check_judges(context: RunContext, known: KnownModels, asked: Sequence[Asked]) -> None:
    """Look at the judges, and at the model that gates hold the last policy against.

    Args:
        context: the run.
        known: of the policy.
        asked: what is judged.

    Raises:
        InputError: one is not a model of its kind, or prompts and answers do not fit it.
    """
    recipe, evaluation = context.recipe, context.recipe.evaluation
    if recipe.gates is not None and recipe.gates.previous is not None:
        previous, _ = causal_lm(recipe.gates.previous, "gates.previous")
        sampling = evaluation.sampling
        require_room(sampling, "evaluation", positions(previous), "gates.previous's")
    for field, judge in label_judges(evaluation).items():
        check_label_judge(judge, field)
    for field, judge_model in answer_judges(evaluation).items():
        causal_lm(judge_model.path, f"{field}.path", for_chat=False)
    if evaluation.judge is not None and context.data.oracle is None:
        check_reward_model("judge", evaluation.judge, known, asked)


def check_gates_can_be_answered(context: RunContext) -> None:
    """A gate that nobody can answer would pass everything.

    Raises:
        InputError: names the gate, and what it lacks.
    """
    gates, data = context.recipe.gates, context.data
    if gates is None:
        return
    evaluation, held_out = context.recipe.evaluation, data.held_out_prompts
    adversarial = sum(one.adversarial for one in held_out) and evaluation.adversarial_prompts
    borderline = sum(one.borderline for one in held_out) and evaluation.borderline_prompts
    others = sum(not one.adversarial and not one.borderline for one in held_out)
    benign = others and evaluation.benign_prompts
    asked = {
        "max_violation_rise": adversarial,
        "max_false_refusals": benign,
        "max_borderline_false_refusals": borderline,
        "max_helpfulness_fall": benign,
    }
    for name, prompts in asked.items():
        if getattr(gates, name) is not None and not prompts:
            expected = "null, or held-out prompts to answer it"
            raise InputError(f"gates.{name}", getattr(gates, name), expected)
    measured = measured_policies(context.recipe)
    if not measured:
        raise InputError("gates", "no policy that is measured", "null, or a stage that makes one")
    if gates.previous is None and len(measured) < 2:
        raise InputError("gates.previous", None, "a model to hold the one policy against")
    if data.oracle is not None:
        return
    judged = {
        "max_violation_rise": (evaluation.judge, "evaluation.judge"),
        "max_false_refusals": (evaluation.refusal_judge, "evaluation.refusal_judge"),
        "max_borderline_false_refusals": (evaluation.refusal_judge, "evaluation.refusal_judge"),
        "max_helpfulness_fall": (
            context.reward_models().get("helpfulness"),
            "a helpfulness model",
        ),
    }
    for name, (judge, wanted) in judged.items():
        if getattr(gates, name) is not None and judge is None:
            raise InputError(
                f"gates.{name}", getattr(gates, name), f"null, or {wanted} to answer it"
            )
