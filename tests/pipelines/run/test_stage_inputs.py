"""Changing one setting renames what depends on it, and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from rayward.cluster.config.load import load_recipe, parse_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.pipelines.run.inputs import name_artifacts
from tests.cluster.records.test_plan import WHOLE

DIGESTS = {
    f"/{table}.parquet": f"sha256:{table}"
    for table in (
        "prompts/train",
        "prompts/held_out",
        "prompts/validation",
        "prompts/seeds",
        "demonstrations/train",
        "safety_demonstrations/train",
        "preferences/train",
        "benchmarks/truthfulqa",
    )
}
ROOM = 96
POLICIES = ["sft", "safety_sft", "rejection_sampling", "ppo", "context_distillation"]
ALL = {"start", *WHOLE, *(f"evaluation/{policy}" for policy in POLICIES)}


def evaluations(*policies: str) -> set[str]:
    return {f"evaluation/{policy}" for policy in policies}


def a_recipe(tmp_path: Path, *changes: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: a\ndata: {tiny_world: {}}\nmodel: {make: {}}\nstages: [" + ", ".join(WHOLE) + "]\n"
    )
    return load_recipe(path, list(changes))


def renamed(before: Recipe, after: Recipe, digests: dict[str, str] | None = None) -> set[str]:
    one, two = (
        name_artifacts(before, DIGESTS, ROOM),
        name_artifacts(after, digests or DIGESTS, ROOM),
    )
    assert set(one) == set(two) == ALL
    return {stage for stage in one if one[stage].name != two[stage].name}


AFTER_PPO = {"ppo", "red_teaming", "context_distillation"}
MEASURED = evaluations(*POLICIES)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("seed=1", ALL),
        ("model.make.layers=2", ALL),
        ("sft.epochs=3", ALL - {"start"}),
        (
            "safety_sft.benign_replay=2.0",
            ALL - {"start", "sft"},
        ),
        # Reward models score every policy that is measured.
        (
            "reward_helpfulness.margin=small",
            {"reward_helpfulness", "rejection_sampling", *AFTER_PPO} | MEASURED,
        ),
        (
            "rejection_sampling.samples_per_prompt=3",
            {"rejection_sampling", *AFTER_PPO}
            | evaluations("rejection_sampling", "ppo", "context_distillation"),
        ),
        ("ppo.kl.beta=0.5", AFTER_PPO | evaluations("ppo", "context_distillation")),
        (
            "red_teaming.rounds=3",
            {"red_teaming", "context_distillation"} | evaluations("context_distillation"),
        ),
        (
            "context_distillation.fit.epochs=2",
            {"context_distillation"} | evaluations("context_distillation"),
        ),
        ("evaluation.sampling.temperature=0.5", MEASURED),
        # Where things run, how often they save and who watches changes nothing that comes out.
        ("ppo.policy.resources.cpus=3", set()),
        ("sft.resources.threads=2", set()),
        ("ppo.checkpoint.every=3", set()),
        ("ppo.rollout.replicas=2", set()),
        ("gates={}", set()),
        ("name=b", set()),
    ],
)
def test_what_one_setting_renames(tmp_path: Path, change: str, expected: set[str]) -> None:
    assert renamed(a_recipe(tmp_path), a_recipe(tmp_path, change)) == expected


def test_another_seed_renames_every_stage_behind_a_given_model(tmp_path: Path) -> None:
    """The model is the same whatever the seed; what is drawn on the way from it is not."""
    given = a_recipe(tmp_path).model_dump(mode="json") | {"model": {"path": "org/model"}}
    before, after = parse_recipe(given), parse_recipe(given | {"seed": 1})
    assert renamed(before, after) == ALL - {"start"}


def test_another_seed_renames_the_measurement_of_a_given_model() -> None:
    given = {"name": "a", "data": {"tiny_world": {}}, "model": {"path": "org/model"}}
    recipes = [parse_recipe(given | {"stages": ["evaluation"], "seed": seed}) for seed in (0, 1)]
    one, two = (name_artifacts(recipe, DIGESTS, ROOM) for recipe in recipes)
    assert set(one) == {"start", "evaluation/start"}
    assert one["start"].name == two["start"].name
    assert one["evaluation/start"].name != two["evaluation/start"].name


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("prompts/held_out", {"red_teaming", "context_distillation"} | MEASURED),
        ("benchmarks/truthfulqa", MEASURED),
        (
            "prompts/validation",
            AFTER_PPO | evaluations("ppo", "context_distillation"),
        ),
        ("demonstrations/train", ALL),
    ],
)
def test_what_one_table_renames(tmp_path: Path, table: str, expected: set[str]) -> None:
    recipe = a_recipe(tmp_path)
    changed = DIGESTS | {f"/{table}.parquet": "sha256:other"}
    assert renamed(recipe, recipe, changed) == expected


def test_the_content_of_a_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "preprompts.yaml"
    path.write_text("generic: [one]")
    recipe = a_recipe(tmp_path, f"context_distillation.preprompts={path}")
    before = name_artifacts(recipe, DIGESTS, ROOM)
    path.write_text("generic: [two]")
    after = name_artifacts(recipe, DIGESTS, ROOM)
    changed = {stage for stage in before if before[stage].name != after[stage].name}
    assert changed == {"context_distillation", "evaluation/context_distillation"}


def test_what_a_file_says_counts_wherever_it_is_named(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    attacker = tmp_path / "attacker"
    attacker.mkdir()
    for content in (template, attacker / "config.json"):
        content.write_text("one")
    safety, attacking = (
        f"ppo.safety.chat_template={template}",
        f"red_teaming.attacker.path={attacker}",
    )
    recipe = a_recipe(tmp_path, safety, attacking)
    before = name_artifacts(recipe, DIGESTS, ROOM)
    (attacker / "config.json").write_text("other")
    after = name_artifacts(recipe, DIGESTS, ROOM)
    changed = {stage for stage in before if before[stage].name != after[stage].name}
    behind = {"red_teaming", "context_distillation", "evaluation/context_distillation"}
    assert changed == behind
    template.write_text("other")
    after = name_artifacts(recipe, DIGESTS, ROOM)
    changed = {stage for stage in before if before[stage].name != after[stage].name}
    assert {"rejection_sampling", "ppo", "evaluation/sft"} <= changed
    assert not {"sft", "reward_safety"} & changed


@pytest.mark.parametrize(
    "judge",
    ["judge", "refusal_judge", "truthfulqa.truth_judge", "truthfulqa.info_judge", "toxigen.judge"],
)
def test_what_a_judge_is_renames_the_measurements(tmp_path: Path, judge: str) -> None:
    """Another model in the same folder is another judge."""
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "config.json").write_text("one")
    recipe = a_recipe(tmp_path, f"evaluation.{judge}.path={folder}")
    before = name_artifacts(recipe, DIGESTS, ROOM)
    (folder / "config.json").write_text("other")
    after = name_artifacts(recipe, DIGESTS, ROOM)
    assert {stage for stage in before if before[stage].name != after[stage].name} == MEASURED


def test_an_oracle_is_not_what_the_tables_say(tmp_path: Path) -> None:
    """The same tables read as a data directory: nobody judges, and other defaults are used."""
    with_oracle = a_recipe(tmp_path)
    document = with_oracle.model_dump(mode="json")
    document["data"] = {"path": "somewhere", "tiny_world": None}
    without = parse_recipe(document)
    assert {"red_teaming", "context_distillation"} | MEASURED <= renamed(with_oracle, without)


def test_a_second_round_depends_on_what_the_first_gathered(tmp_path: Path) -> None:
    def names(*changes: str) -> dict[str, Any]:
        return name_artifacts(a_recipe(tmp_path, "rounds=2", *changes), DIGESTS, ROOM)

    one, two = names(), names("red_teaming.seed_prompts=7")
    changed = {stage for stage in one if one[stage].name != two[stage].name}
    assert {"red_teaming", "rejection_sampling-2", "ppo-2", "context_distillation"} <= changed
    assert not {"sft", "ppo", "rejection_sampling", "evaluation/ppo", "sft-2"} & changed
    two = names("rejection_sampling.samples_per_prompt=3")
    changed = {stage for stage in one if one[stage].name != two[stage].name}
    assert {"rejection_sampling", "sft-2", "reward_safety-2"} <= changed
    assert not {"sft", "reward_safety"} & changed
