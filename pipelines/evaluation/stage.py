"""Measuring every policy of a run on the same held-out prompts, and on public benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayward.cluster.config.evaluation import EvaluationSettings, answer_judges
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.roles import ModelRole
from rayward.cluster.records.plan import PlannedStage
from rayward.pipelines.stage import Asked, Stage

if TYPE_CHECKING:
    from rayward.cluster.config.recipe import Recipe
    from rayward.pipelines.run.capacity import Moment
    from rayward.pipelines.run.context import RunContext
    from rayward.pipelines.run.models import KnownModels


class EvaluationStage(Stage):
    """Measures each policy as soon as it is there and the reward models are; named in a recipe, it
    asks for a measurement of a model that no stage makes."""

    name = "evaluation"
    label = "evaluation"
    Settings = EvaluationSettings
    makes = "measurements"
    reads = ("prompts/held_out", "benchmarks/")
    last = True

    def sampling(self, recipe: Recipe) -> SamplingSettings:
        """How answers to held-out prompts are drawn."""
        return recipe.evaluation.sampling

    def asked(self, context: RunContext) -> list[Asked]:
        """Held-out prompts."""
        prompts = context.data.held_out_prompts
        return [Asked(self.name, self.sampling(context.recipe), prompts)]

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """The judges."""
        from rayward.pipelines.run.inputs import given_file, given_model

        evaluation = recipe.evaluation
        judges: list[ModelRole | None] = [evaluation.judge, evaluation.refusal_judge]
        if evaluation.truthfulqa is not None:
            judges += [evaluation.truthfulqa.truth_judge, evaluation.truthfulqa.info_judge]
        if evaluation.toxigen is not None:
            judges += [evaluation.toxigen.judge]
        models = [given_model(None if judge is None else judge.path) for judge in judges]
        template = evaluation.judge and given_file(evaluation.judge.chat_template)
        return {"judges": [*models, {"template": template}]}

    def capacity(self, recipe: Recipe) -> list[Moment]:
        """The sampler, with the judges of each part; where an oracle judges, it is only less."""
        from rayward.cluster.ray_runtime.placement import RoleRequest
        from rayward.pipelines.run.capacity import Gang, sampler_moment

        evaluation = recipe.evaluation
        together: dict[str, dict[str, ModelRole | None]] = {
            self.name: {"judge": evaluation.judge, "refusal_judge": evaluation.refusal_judge},
            f"{self.name}.truthfulqa": {
                field.rpartition(".")[2]: judge
                for field, judge in answer_judges(evaluation).items()
            },
            f"{self.name}.toxigen": (
                {"judge": evaluation.toxigen.judge} if evaluation.toxigen else {}
            ),
        }
        return [
            sampler_moment(
                part,
                recipe,
                [
                    Gang([RoleRequest(role, 1, judge.resources)])
                    for role, judge in judges.items()
                    if judge is not None
                ],
            )
            for part, judges in together.items()
        ]

    def check(self, context: RunContext) -> None:
        """Each gate can be answered."""
        from rayward.pipelines.evaluation.checks import check_gates_can_be_answered

        check_gates_can_be_answered(context)

    def check_models(self, context: RunContext, known: KnownModels) -> KnownModels:
        """The judges, and the model that gates hold the last policy against."""
        from rayward.pipelines.evaluation.checks import check_judges

        check_judges(context, known, self.asked(context))
        return known

    def run(self, context: RunContext, planned: PlannedStage) -> None:
        """Nothing: every policy is measured as soon as it can be."""
