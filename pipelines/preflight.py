"""What can be known to fail is asked before Ray starts, and before a stage has taken its hours."""

from cluster.config.recipe import REWARD_STAGES, Recipe
from cluster.config.roles import RolloutRole
from cluster.errors import InputError
from cluster.types import AXES
from pipelines.attack_templates import load_attack_templates
from pipelines.best_samples import find_best
from pipelines.context import RunContext
from pipelines.plan import measured_policies
from pipelines.preflight_models import check_models
from pipelines.preprompts import load_preprompts


def check(context: RunContext) -> None:
    """Look for everything that the recipe's stages will need.

    Raises:
        InputError: settings contradict each other, a table is empty, a file cannot be used, a path
            is not a model of its kind, or prompts and answers do not fit a model.
    """
    recipe, data = context.recipe, context.data
    stages = set(recipe.stages)
    if "sft" in stages:
        _require("demonstrations", len(data.demonstrations))
    if "safety_sft" in stages:
        _require("safety_demonstrations", len(data.safety_demonstrations))
        _require_replay(context, "safety_sft", recipe.safety_sft.benign_replay)
    for axis in AXES:
        if REWARD_STAGES[axis] in stages:
            _require(f"preferences, axis {axis}", len(data.preferences[axis]))
    if {"rejection_sampling", "ppo"} & stages:
        _require("prompts", len(data.prompts))
    for given in recipe.rejection_sampling.earlier:
        find_best(given)
    adversarial = sum(prompt.adversarial for prompt in data.prompts)
    if "red_teaming" in stages:
        _require("seed prompts or adversarial prompts", len(data.seed_prompts) or adversarial)
        settings = recipe.red_teaming
        attacker = settings.attacker is not None
        load_attack_templates(
            settings.templates, data.oracle is not None, settings.vectors, attacker
        )
    if "context_distillation" in stages:
        _require("adversarial prompts", adversarial)
        _require_replay(context, "context_distillation", recipe.context_distillation.benign_replay)
        distilled = recipe.context_distillation
        preprompts = load_preprompts(distilled.preprompts, data.oracle is not None)
        preprompts.require(distilled.preprompts_per_prompt)
    if "ppo" in stages:
        if recipe.ppo.early_stop is not None and not data.validation_prompts:
            raise InputError(
                "ppo.early_stop", "no validation prompts", "null, or data with validation prompts"
            )
        _check_groups(recipe)
        _check_weight_sync(recipe)
    _check_engines(recipe.ppo.rollout, "ppo.rollout")
    attacker_settings = recipe.red_teaming.attacker
    if "red_teaming" in stages and attacker_settings is not None:
        _check_engines(attacker_settings.rollout, "red_teaming.attacker.rollout")
    _check_gates(context)
    check_models(context)


def _require_replay(context: RunContext, section: str, benign_replay: float) -> None:
    demonstrations = context.data.demonstrations
    if benign_replay and all(one.prompt.adversarial for one in demonstrations):
        raise InputError(
            f"{section}.benign_replay",
            benign_replay,
            "0, because the data has no demonstrations on benign prompts",
        )


def _check_gates(context: RunContext) -> None:
    """A gate that nobody can answer would pass everything."""
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


def _require(name: str, rows: int) -> None:
    if not rows:
        raise InputError(f"data: {name}", rows, "at least one row for the stages of this recipe")


def _check_engines(rollout: RolloutRole, section: str) -> None:
    """An engine on GPUs needs one for each of its processes; on CPUs it may have any number."""
    gpus, processes = rollout.resources.gpus, rollout.tensor_parallel_size
    shares_one = processes == 1 and gpus <= 1
    if gpus and gpus != processes and not shares_one:
        raise InputError(
            f"{section}.resources.gpus",
            gpus,
            f"as many as {section}.tensor_parallel_size, which is {processes}",
        )


def _check_groups(recipe: Recipe) -> None:
    settings = recipe.ppo
    for group in settings.colocate:
        if "critic" in group and not settings.has_critic:
            raise InputError(
                "ppo.colocate",
                group,
                f"roles without critic: {settings.advantage_estimator} has none",
            )
        labels = [getattr(settings, role).resources.labels for role in group]
        if any(one != labels[0] for one in labels):
            raise InputError("ppo.colocate", group, "roles with the same resources.labels")


def _check_weight_sync(recipe: Recipe) -> None:
    settings = recipe.ppo
    field, backend = "ppo.rollout.weight_sync.backend", settings.rollout.weight_sync.backend
    if backend == "object_store":
        return
    for role in ("policy", "rollout"):
        if not getattr(settings, role).resources.gpus:
            raise InputError(
                field, backend, f"object_store, because ppo.{role}.resources.gpus is 0"
            )
    together = any({"policy", "rollout"} <= set(group) for group in settings.colocate)
    if backend == "ipc" and not together:
        raise InputError(field, backend, "nccl, or policy and rollout in one group of ppo.colocate")
