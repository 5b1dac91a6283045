"""Recipe files, and settings changed on the command line."""

from pathlib import Path

import pytest

from rayward.cluster.config.load import load_recipe, make_recipe, resolve_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.shipped import find_recipe, shipped_recipes
from rayward.cluster.errors import InputError

TINY = "name: tiny\ndata:\n  tiny_world: {}\nmodel:\n  make: {}\n"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def error(path: Path, *overrides: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_recipe(path, list(overrides))
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_recipe_is_read(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert (recipe.name, recipe.seed) == ("tiny", 0)
    assert recipe.data.tiny_world is not None
    assert recipe.model.path is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\xff", "a readable YAML file"),
        (b"name: \x01\n", "valid YAML"),
        (b"name: [tiny\n", "valid YAML (while parsing a flow sequence"),
        (b"name: tiny\n\tdata: 3\n", "valid YAML"),
        (b"name: 2026-13-01\n", "valid YAML (month must be in 1..12"),
        (b"name: !!python/object/apply:os.getcwd []\n", "valid YAML"),
        (b"- name: tiny\n", "a YAML mapping of settings"),
        (b"", "a YAML mapping of settings"),
        (b"just text", "a YAML mapping of settings"),
        (b"name: a\nname: b\n", "valid YAML (found 'name' twice"),
        (b"name: a\nppo:\n  steps: 3\n  steps: 4\n", "valid YAML (found 'steps' twice"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    refused = error(path)
    assert (refused.field, refused.value) == ("recipe", str(path))
    assert refused.expected.startswith(expected)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file" in error(tmp_path / "none.yaml").expected
    assert "Is a directory" in error(tmp_path).expected


def test_anchors_and_merges_work_as_in_other_yaml(tmp_path: Path) -> None:
    """A key from a merge may be given again: that is what merges are for."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        TINY
        + "reward_safety: &reward\n  batch_size: 8\n  epochs: 3\n"
        + "reward_helpfulness:\n  <<: *reward\n  epochs: 5\n"
    )
    recipe = load_recipe(path)
    assert (recipe.reward_helpfulness.batch_size, recipe.reward_helpfulness.epochs) == (8, 5)
    assert recipe.reward_safety.epochs == 3


def test_overrides_are_nested_and_typed_by_yaml(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "seed=7",
            "ppo.policy.optimizer.learning_rate=0.5",  # no parent is in the file
            "ppo.early_stop=null",
            "ppo.kl={beta: 0.1, estimator: k3}",
            "stages=[sft, reward_safety]",
            "ppo.rollout.enforce_eager=false",
            "sft.resources.labels={zone: a=b}",  # only the first = separates
            "name=other",
            "ppo.steps=3",
            "ppo.steps=4",  # the last one holds
        ],
    )
    assert recipe.seed == 7
    assert recipe.ppo.policy.optimizer.learning_rate == 0.5
    assert recipe.ppo.early_stop is None
    assert (recipe.ppo.kl.beta, recipe.ppo.kl.estimator) == (0.1, "k3")
    assert recipe.stages == ["sft", "reward_safety"]
    assert recipe.ppo.rollout.enforce_eager is False
    assert recipe.sft.resources.labels == {"zone": "a=b"}
    assert (recipe.name, recipe.ppo.steps) == ("other", 4)
    # What no override names stays.
    assert recipe.ppo.critic == Recipe.model_fields["ppo"].default.critic


@pytest.mark.parametrize(
    "override", ["", "seed", "=3", "ppo..steps=3", ".seed=3", "seed.=3", "ppo.kl"]
)
def test_an_override_of_the_wrong_form_is_refused(recipe_file: Path, override: str) -> None:
    refused = error(recipe_file, override)
    assert (refused.field, refused.value, refused.expected) == ("--set", override, "a.b=value")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("ppo.kl=[1", "a value that is valid YAML"),
        ("ppo.kl={beta: 1, beta: 2}", "a value that is valid YAML"),
        ("name=2026-13-01", "a value that is valid YAML"),
        ("name.first=x", "a key under a mapping; 'name' is not one"),
        ("name.first.letter=x", "a key under a mapping; 'name' is not one"),
    ],
)
def test_an_override_that_cannot_be_applied_is_refused(
    recipe_file: Path, override: str, expected: str
) -> None:
    refused = error(recipe_file, override)
    assert (refused.field, refused.value, refused.expected) == ("--set", override, expected)


def test_an_override_is_checked_like_the_file(recipe_file: Path) -> None:
    assert str(error(recipe_file, "ppo.stepz=3")).startswith("ppo.stepz: got 3, expected a known")
    assert str(error(recipe_file, "seed=x")) == "seed: got 'x', expected a valid integer"
    # The file has data.tiny_world; a path beside it is one source too many.
    assert error(recipe_file, "data.path=somewhere").value == "both"
    recipe = load_recipe(recipe_file, ["data.path=somewhere", "data.tiny_world=null"])
    assert recipe.data.path == "somewhere"


def test_paths_that_exist_become_absolute(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's processes work in the run's directory; a hub id or a URI must stay as it is."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    sources = ["data.tiny_world=null", "model.make=null"]
    for given, expected in (
        ("mine", str(tmp_path / "mine")),
        ("./mine", str(tmp_path / "mine")),
        ("org/model", "org/model"),
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("x" * 300, "x" * 300),  # longer than a file name can be
    ):
        recipe = load_recipe(
            recipe_file,
            [*sources, f"data.path={given}", f"model.path={given}", f"ppo.safety.path={given}"],
        )
        assert recipe.data.path == recipe.model.path == recipe.ppo.safety.path == expected


def overlay(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_overlays_merge_mappings_and_replace_the_rest(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        TINY
        + "stages: [sft, reward_safety]\n"
        + "sft: {epochs: 7, resources: {cpus: 3, labels: {zone: a}}}\n"
        + "gates: {}\n"
    )
    first = overlay(
        tmp_path / "one.yaml",
        "sft: {resources: {labels: {role: learner}, threads: 2}, lora: {rank: 4}}\n"
        "stages: [sft]\n"
        "gates: null\n",
    )
    second = overlay(tmp_path / "two.yaml", "sft: {resources: {threads: 5}}\nseed: 3\n")
    loaded = load_recipe(recipe, ["seed=4"], [first, second])
    assert loaded.sft.epochs == 7
    assert loaded.sft.resources.labels == {"zone": "a", "role": "learner"}
    assert (loaded.sft.resources.cpus, loaded.sft.resources.threads) == (3, 5)  # the last on top
    assert loaded.sft.lora is not None  # a mapping where there was null
    assert (loaded.stages, loaded.gates) == (["sft"], None)
    assert loaded.seed == 4  # --set comes last
    # No file was changed on the way.
    assert load_recipe(recipe).stages == ["sft", "reward_safety"]


@pytest.mark.parametrize(
    ("content", "field", "expected"),
    [
        ("- a\n", "--overlay", "a YAML mapping that is part of a recipe"),
        ("ppo: [b\n", "--overlay", "valid YAML"),
        ("ppo: {steps: 1, steps: 2}\n", "--overlay", "valid YAML (found 'steps' twice"),
        ("ppo: {stepz: 3}\n", "{file}: ppo.stepz", "a known setting"),
        ("pppo: {}\n", "{file}: pppo", "a known setting"),
        ("ppo: 3\n", "{file}: ppo", ""),
        ("sft: {resources: {cpus: many}}\n", "{file}: sft.resources.cpus", "a valid number"),
        ("stages: [sft, dance]\n", "{file}: stages.1", "'sft'"),
        ("ppo: {batch_size: 7, minibatch_size: 2}\n", "{file}: ppo.minibatch_size", "a divisor"),
    ],
)
def test_a_wrong_overlay_is_named(
    recipe_file: Path, tmp_path: Path, content: str, field: str, expected: str
) -> None:
    path = overlay(tmp_path / "topology.yaml", content)
    with pytest.raises(InputError) as caught:
        load_recipe(recipe_file, None, [path])
    assert caught.value.field == field.format(file=path)
    assert caught.value.expected.startswith(expected)
    assert "\n" not in str(caught.value)


def test_an_overlay_that_is_not_there(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--overlay: got .*none.yaml', expected a readable YAML"):
        load_recipe(recipe_file, None, [tmp_path / "none.yaml"])


def test_nobody_is_blamed_for_what_others_set(recipe_file: Path, tmp_path: Path) -> None:
    """The overlay may set the same, but a --set or the recipe is what counts."""
    path = overlay(tmp_path / "topology.yaml", "ppo: {steps: 3}\n")
    for override, field in (("ppo.steps=x", "ppo.steps"), ("ppo=3", "ppo"), ("sed=1", "sed")):
        with pytest.raises(InputError) as caught:
            load_recipe(recipe_file, [override], [path])
        assert caught.value.field == field
    # A --set can mend what an overlay got wrong.
    path.write_text("ppo: {steps: x}\n")
    assert load_recipe(recipe_file, ["ppo.steps=3"], [path]).ppo.steps == 3


def test_a_recipe_for_another_machine_keeps_its_paths(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    changes = ["data.tiny_world=null", "data.path=mine"]
    assert resolve_recipe(recipe_file, changes).data.path == "mine"
    assert load_recipe(recipe_file, changes).data.path == str(tmp_path / "mine")


def test_an_overlay_lies_over_a_document_too(tmp_path: Path) -> None:
    path = overlay(tmp_path / "topology.yaml", "sft: {resources: {cpus: 4}}\n")
    document = {"name": "e", "data": {"path": "d"}, "model": {"path": "m"}, "stages": ["sft"]}
    assert make_recipe(document, ["sft.epochs=5"], [path]).sft.resources.cpus == 4


def test_recipes_go_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"demo", "hh-rlhf"} <= shipped_recipes().keys()
    assert load_recipe(find_recipe("demo")).name == "demo"
    # A folder is no recipe; a file of that name is the one that is meant.
    (tmp_path / "demo").mkdir()
    assert load_recipe(find_recipe("demo")).name == "demo"
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text(TINY)
    assert load_recipe(find_recipe("demo")).name == "tiny"
    with pytest.raises(InputError) as caught:
        find_recipe("dem")
    assert str(caught.value) == (
        "recipe: got 'dem', expected a YAML file, or one of the recipes that are there: "
        + ", ".join(shipped_recipes())
    )
    # What is plainly a path stays one, and reading says what is wrong with it.
    for path in ("dem.yaml", "./dem", "folder/demo"):
        assert find_recipe(path) == Path(path)
