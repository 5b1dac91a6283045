"""The stages that a recipe may name, and what runs each. A new stage is a file and a row here.

Reward models train side by side and are started together: `stage_supervised.run_rewards`.
"""

from collections.abc import Callable

from rayward.cluster.config.recipe import StageName
from rayward.cluster.records.plan import PlannedStage
from rayward.pipelines.context_distillation.stage import run_context_distillation
from rayward.pipelines.ppo.stage import run_ppo
from rayward.pipelines.red_teaming.stage import run_red_teaming
from rayward.pipelines.rejection_sampling.stage import run_rejection_sampling
from rayward.pipelines.run.context import RunContext
from rayward.pipelines.supervised.stage import run_safety_sft, run_sft

STAGES: dict[StageName, Callable[[RunContext, PlannedStage], None]] = {
    "sft": run_sft,
    "safety_sft": run_safety_sft,
    "rejection_sampling": run_rejection_sampling,
    "ppo": run_ppo,
    "red_teaming": run_red_teaming,
    "context_distillation": run_context_distillation,
}
