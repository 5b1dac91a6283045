"""`rayward run`, `demo` and `import` on bad input: one line, exit code 2, and before Ray starts."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from rayward.actors.models.loading import load_tokenizer
from rayward.cluster.cli import main
from rayward.cluster.config.load import load_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.records.tables import (
    PROMPTS,
    DataDirectory,
    write_demonstrations,
    write_preferences,
    write_prompts,
)
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.types import AXES, Demonstration, Message, PreferencePair, Prompt
from rayward.pipelines.run.data import load_data
from rayward.pipelines.runner import run_recipe as runner
from tests.tiny import (
    JUDGE_TEMPLATE,
    tiny_config,
    tiny_tokenizer,
    wordpiece_tokenizer,
    write_tiny,
    write_tiny_classifier,
    write_tiny_llama,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**settings: object) -> None:
        pytest.fail("Ray was started before the bad input was found")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rayward(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the command line, which must refuse; the one line that it says, without `rayward: `."""

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["rayward", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 2
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert line.startswith("rayward: ")
        return line.removeprefix("rayward: ")

    return refused


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"))


PROMPT = Prompt("p", (Message("user", "Hi"),), None, None, False, False, "test")


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    """A data directory with a row or two for every stage."""
    directory = DataDirectory(str(tmp_path / "data"))
    write_demonstrations(directory.demonstrations("train"), [Demonstration(PROMPT, "Hello.")])
    write_prompts(directory.prompts("train"), [PROMPT, replace(PROMPT, id="q")])
    write_prompts(directory.prompts("validation"), [replace(PROMPT, id="v")])
    pairs = [PreferencePair(PROMPT, "a", "b", axis, None, None, None) for axis in AXES]
    write_preferences(directory.preferences("train"), pairs)
    directory.mark_complete()
    return directory


@pytest.fixture
def recipe(tmp_path: Path, data: DataDirectory, llama: Path) -> Path:
    """A recipe that has nothing wrong with it."""
    path = tmp_path / "t.yaml"
    document = {"name": "t", "data": {"path": data.uri}, "model": {"path": str(llama)}}
    path.write_text(yaml.safe_dump(document))
    return path


def test_what_is_right_comes_as_far_as_ray(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other tests change one thing of this."""
    monkeypatch.setattr(sys, "argv", ["rayward", "run", str(recipe), "--out", "out"])
    with pytest.raises(pytest.fail.Exception, match="Ray was started"):
        main()
    assert RunDirectory(tmp_path / "out").status().state == "failed"


def test_a_recipe_that_cannot_be_read(rayward: Callable[..., str], tmp_path: Path) -> None:
    assert rayward("run", "none.yaml").startswith("recipe: got 'none.yaml', expected a readable")
    assert rayward("run", tmp_path).startswith(f"recipe: got '{tmp_path}', expected a readable")
    for name, content in (("binary", b"\xff\xfe\x00"), ("list", b"- a\n"), ("broken", b"a: [b")):
        Path(name).write_bytes(content)
        assert rayward("run", name).startswith(f"recipe: got '{name}', expected ")
    assert not Path("runs").exists()


def test_settings_that_are_wrong(rayward: Callable[..., str], recipe: Path) -> None:
    run = ("run", recipe, "--out", "out")
    assert rayward(*run, "--set", "ppo.stepz=3").startswith("ppo.stepz: got 3, expected a known")
    assert rayward(*run, "--set", "seed=x") == "seed: got 'x', expected a valid integer"
    assert rayward(*run, "--set", "seed") == "--set: got 'seed', expected a.b=value"
    assert rayward(*run, "--set", "seed=1", "--set", "ppo=3").startswith("ppo: got 3, expected")
    assert rayward("demo", "--seed", 2**63).startswith(f"seed: got {2**63}, expected")
    assert not Path("out").exists()


def test_resume_needs_its_run(rayward: Callable[..., str], recipe: Path) -> None:
    line = "--out: got None, expected the directory of the run that --resume goes on with"
    assert rayward("run", recipe, "--resume") == line
    for name in ("nowhere", "."):
        out = Path(name).absolute()
        line = f"--resume: got '{out}', expected the directory of a run that was started"
        assert rayward("run", recipe, "--resume", "--out", name) == line
    assert not Path("nowhere").exists()


def test_resume_in_a_folder_of_recipes_is_refused(
    rayward: Callable[..., str], recipe: Path
) -> None:
    recipe.rename("recipe.yaml")
    line = rayward("run", "recipe.yaml", "--resume", "--out", ".")
    assert line.startswith("--resume: got ")


def test_resume_keeps_to_its_recipe(rayward: Callable[..., str], recipe: Path) -> None:
    RunDirectory.create(Path("out"), load_recipe(recipe)).close()
    line = rayward("run", recipe, "--resume", "--out", "out", "--set", "ppo.steps=3")
    assert line == "ppo.steps: got 3, expected 200, with which the run was started"


def test_a_directory_in_use_is_not_written_to(rayward: Callable[..., str], recipe: Path) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").touch()
    expected = "expected an empty directory; choose another or --resume"
    out = Path("out").absolute()
    assert rayward("run", recipe, "--out", "out") == f"--out: got '{out}', {expected}"
    assert rayward("demo", "--out", "out") == f"--out: got '{out}', {expected}"
    assert "it is a file" in rayward("run", recipe, "--out", "out/thesis.tex")
    assert [path.name for path in Path("out").iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_made(rayward: Callable[..., str], recipe: Path) -> None:
    assert rayward("run", recipe, "--out", recipe / "out").startswith("--out: got ")


def test_a_cluster_that_does_not_answer(
    rayward: Callable[..., str], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"  # bound, and nobody listens
        line = rayward("run", recipe, "--out", "out", "--address", address)
        assert line.startswith(f"--address: got '{address}', expected host:port or ray://")
        assert "nothing answers" in line
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert rayward("demo", "--out", "out") == line
    assert rayward("run", recipe, "--address", "cluster").startswith("--address: got 'cluster'")
    assert not Path("out").exists()


def test_data_that_is_not_there(
    rayward: Callable[..., str], recipe: Path, data: DataDirectory
) -> None:
    line = rayward("run", recipe, "--out", "a", "--set", "data.path=nowhere")
    assert line.startswith("data.path: got 'nowhere', expected a folder with the file _SUCC")
    data.mark_incomplete()
    line = rayward("run", recipe, "--out", "b")
    assert line.startswith(f"data.path: got '{data.uri}', expected a folder with the file")
    # The run says the same to whoever looks at it later.
    status = RunDirectory(Path("b")).status()
    assert status.state == "failed"
    assert status.error == f"InputError: {line}"


def test_a_world_without_held_out_prompts_is_made(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes of held-out and validation splits may be 0, and then comes Ray as ever."""
    names = ("held_out_adversarial", "held_out_benign", "held_out_borderline", "held_out_pairs")
    empty = dict.fromkeys((*names, "validation_adversarial", "validation_benign"), 0)
    small = dict.fromkeys(
        ("demonstrations", "train_prompts", "safety_pairs", "helpfulness_pairs"), 42
    )
    sizes = f"data={json.dumps({'tiny_world': empty | small})}"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "rayward",
            "run",
            str(recipe),
            "--out",
            "out",
            "--set",
            sizes,
            "--set",
            "ppo.early_stop=null",
        ],
    )
    with pytest.raises(pytest.fail.Exception, match="Ray was started"):
        main()


def test_data_that_is_malformed(
    rayward: Callable[..., str], recipe: Path, data: DataDirectory
) -> None:
    path = data.prompts("train")
    whole = pq.read_table(path).to_pylist()
    rows = [whole[0], {**whole[1], "risk_category": "jokes"}]
    pq.write_table(pa.Table.from_pylist(rows, schema=PROMPTS), path)
    line = rayward("run", recipe, "--out", "a")
    assert line.startswith(f"{path}: column risk_category, row 1 (counted from 0): got 'jokes', ")
    assert "unqualified_advice" in line
    pq.write_table(pa.Table.from_pylist([], schema=PROMPTS), path)
    assert rayward("run", recipe, "--out", "b") == f"{path}: rows: got 0, expected at least one row"
    pq.write_table(pa.Table.from_pylist(whole, schema=PROMPTS).drop(["source"]), path)
    line = rayward("run", recipe, "--out", "c")
    assert line == f"{path}: column source: got None, expected a column of type string"
    Path(path).write_bytes(b"PK")
    assert rayward("run", recipe, "--out", "d").startswith(f"file: got '{path}', expected a Parq")


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("demonstrations", "data: demonstrations: got 0, expected at least one row"),
        ("preferences", "data: preferences, axis safety: got 0, expected at least one row"),
        ("prompts", "data: prompts: got 0, expected at least one row"),
    ],
)
def test_data_that_a_later_stage_lacks(
    rayward: Callable[..., str], recipe: Path, data: DataDirectory, table: str, line: str
) -> None:
    """Found before the first stage, which may take hours, and before Ray starts."""
    (Path(data.uri) / table / "train.parquet").unlink()
    assert rayward("run", recipe, "--out", "out").startswith(line)


def test_a_model_that_is_none(
    rayward: Callable[..., str], recipe: Path, llama: Path, tmp_path: Path
) -> None:
    def refused(path: object) -> str:
        out = f"out-{len(list(tmp_path.glob('out-*')))}"
        line = rayward("run", recipe, "--out", out, "--set", f"model.path={path}")
        assert line.startswith(f"model.path: got '{path}', expected ")
        return line

    assert "there is no such directory" in refused(tmp_path / "nowhere")
    assert "there is no such directory" in refused(recipe)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "it has no config.json" in refused(empty)
    (empty / "config.json").write_text("{broken")
    refused(empty)
    # A tokenizer, and a configuration of a kind that is no language model.
    other = tmp_path / "other"
    other.mkdir()
    for file in llama.glob("*token*"):
        (other / file.name).write_bytes(file.read_bytes())
    for template in llama.glob("chat_template*"):
        (other / template.name).write_bytes(template.read_bytes())
    (other / "config.json").write_text(json.dumps({"model_type": "vit"}))
    refused(other)
    # The right configuration, and no weights.
    (other / "config.json").write_bytes((llama / "config.json").read_bytes())
    refused(other)
    # The right weights, and no chat template.
    (other / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    for template in other.glob("chat_template*"):
        template.unlink()
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "chat template" in refused(other)


def test_early_stop_needs_prompts_to_measure(
    rayward: Callable[..., str], recipe: Path, data: DataDirectory
) -> None:
    Path(data.prompts("validation")).unlink()
    line = "ppo.early_stop: got 'no validation prompts', expected null, or data with validation"
    assert rayward("run", recipe, "--out", "out").startswith(line)


def test_prompts_and_answers_must_fit_the_model(rayward: Callable[..., str], recipe: Path) -> None:
    line = rayward("run", recipe, "--out", "o", "--set", "ppo.sampling.max_response_tokens=500")
    expected = "got 756, expected at most the model's 512 positions"
    assert line.startswith(f"ppo.sampling.max_prompt_tokens + max_response_tokens: {expected}")


def test_data_that_changed_is_not_resumed_with(
    rayward: Callable[..., str], recipe: Path, data: DataDirectory
) -> None:
    with RunDirectory.create(Path("out"), load_recipe(recipe)) as run:
        load_data(load_recipe(recipe), run)
    write_prompts(data.prompts("train"), [replace(PROMPT, id="other")])
    line = rayward("run", recipe, "--resume", "--out", "out")
    assert line.startswith("data: got '/prompts/train.parquet', expected the data that the run")


@pytest.mark.parametrize("field", ["ppo.safety.path", "ppo.critic.path", "ppo.reference.path"])
def test_a_model_that_a_later_stage_lacks(
    rayward: Callable[..., str], recipe: Path, tmp_path: Path, field: str
) -> None:
    """Found before the first stage, too."""
    line = rayward("run", recipe, "--out", "out", "--set", f"{field}={tmp_path / 'nowhere'}")
    assert line.startswith(f"{field}: got '{tmp_path / 'nowhere'}', expected ")


ROLES = {"safety": "ppo.safety", "helpfulness": "ppo.helpfulness", "judge": "evaluation.judge"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that reads letters, and not the policy's tokens."""
    return write_tiny_classifier(tmp_path_factory.mktemp("bert"))


def scalar(directory: Path, tokenizer: PreTrainedTokenizerFast, **config: int) -> Path:
    """A decoder with one output."""
    shape = tiny_config(len(tokenizer))
    shape.update(config)
    return write_tiny_classifier(directory, shape, tokenizer)


@pytest.mark.parametrize("role", ROLES.values())
def test_a_model_that_cannot_judge(
    rayward: Callable[..., str], recipe: Path, llama: Path, tmp_path: Path, role: str
) -> None:
    def refused(path: Path, **options: object) -> str:
        out = f"out-{len(list(tmp_path.glob('out-*')))}"
        settings = json.dumps({"path": str(path), **options})
        return rayward("run", recipe, "--out", out, "--set", f"{role}={settings}")

    two = tmp_path / "two"
    config = AutoConfig.from_pretrained(llama, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(two)
    tiny_tokenizer().save_pretrained(two)
    line = f"{role}.path: got '{two}', expected a model with one output; it has 2"
    assert refused(two) == line
    classifier = "a transformers directory or hub id of a sequence classifier with one output"
    line = f"{role}.path: got '{llama}', expected {classifier}; it is a LlamaForCausalLM"
    assert refused(llama) == line
    tokenizer = wordpiece_tokenizer()
    tokenizer.chat_template = None
    bare = write_tiny_classifier(tmp_path / "bare", tokenizer=tokenizer)
    assert refused(bare) == (
        f"{role}.chat_template: got None, expected a Jinja file, because the tokenizer of {bare} "
        "has no chat template"
    )
    assert refused(bare, chat_template="none.jinja") == (
        f"{role}.chat_template: got 'none.jinja', expected a readable Jinja file "
        "([Errno 2] No such file or directory: 'none.jinja')"
    )
    file = tmp_path / "text.jinja"
    file.write_text("Dear judge,")
    assert refused(bare, chat_template="text.jinja") == (
        f"{role}.chat_template: got '{file}', expected a chat template that writes a question and "
        "its answer"
    )
    (bare / "model.safetensors").unlink()
    file.write_text(JUDGE_TEMPLATE)
    line = f"{role}.path: got '{bare}', expected {classifier}; it has no weights"
    assert refused(bare, chat_template="text.jinja") == line


def test_a_policy_that_is_none(rayward: Callable[..., str], recipe: Path, bert: Path) -> None:
    causal = "a transformers directory or hub id of a causal language model"
    for out, field in (("a", "model.path"), ("b", "ppo.policy.path"), ("c", "ppo.reference.path")):
        line = rayward("run", recipe, "--out", out, "--set", f"{field}={bert}")
        expected = f"{causal}; it is a BertForSequenceClassification"
        assert line == f"{field}: got '{bert}', expected {expected}"


def test_a_critic_that_is_none(
    rayward: Callable[..., str], recipe: Path, bert: Path, tmp_path: Path
) -> None:
    line = rayward("run", recipe, "--out", "a", "--set", f"ppo.critic.path={bert}")
    assert line == (
        f"ppo.critic.path: got '{bert}', expected a transformers directory or hub id of a decoder: "
        "a causal language model, or a sequence classifier with one output; bert has no head for "
        "every token"
    )
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["more"])
    other = scalar(tmp_path / "other", tokenizer)
    line = rayward("run", recipe, "--out", "b", "--set", f"ppo.critic.path={other}")
    expected = "expected a model with the policy's tokenizer and chat template"
    assert line == f"ppo.critic.path: got '{other}', {expected}"
    # A run without a critic does not ask for one.
    rayward("run", recipe, "--out", "c", "--set", f"ppo.critic.path={other}", *GRPO, *LAST_FAULT)


GRPO = ("--set", "ppo.advantage_estimator=grpo")
LAST_FAULT = ("--set", "evaluation.judge.path=/nowhere")  # it is looked for after all others


def test_a_model_with_too_few_positions(
    rayward: Callable[..., str], recipe: Path, tmp_path: Path
) -> None:
    """By default 256 + 64 tokens are sampled, and 512 are learned."""
    short = scalar(tmp_path / "scalar", tiny_tokenizer(), max_position_embeddings=319)
    small = write_tiny(tmp_path / "causal", "gpt2", n_positions=319)
    run = ("run", recipe, "--out")
    both = "sampling.max_prompt_tokens + max_response_tokens: got 320, expected at most"
    roles = ["policy", "reference", "critic", "safety", "helpfulness"]
    for out, role in enumerate([*(f"ppo.{role}" for role in roles), "evaluation.judge"]):
        path = small if role in ("ppo.policy", "ppo.reference") else short
        line = rayward(*run, out, "--set", f"{role}.path={path}")
        assert line == f"{role.partition('.')[0]}.{both} {role}.path's 319 positions"
    for stage in ("sft", "reward_safety", "reward_helpfulness"):
        line = rayward(*run, stage, "--set", f"{stage}.max_tokens=513")
        expected = "got 513, expected at most the start model's 512 positions"
        assert line == f"{stage}.max_tokens: {expected}"
    line = rayward(*run, "gpt2", "--set", f"model.path={small}")
    assert line == "sft.max_tokens: got 512, expected at most the start model's 319 positions"


def test_prompts_that_a_model_cannot_read(
    rayward: Callable[..., str], recipe: Path, data: DataDirectory, tmp_path: Path
) -> None:
    # <user> Hi <eos> \n <assistant>: 6 tokens.
    line = rayward("run", recipe, "--out", "a", "--set", "ppo.sampling.max_prompt_tokens=5")
    assert line == (
        "ppo.sampling.max_prompt_tokens: got 5, expected room for at least one prompt; the "
        "shortest has 6 tokens"
    )
    # [CLS] user : Hi [SEP] assistant : [SEP]: 20 letters.
    tokenizer = wordpiece_tokenizer()
    for most in (20, 19):
        tokenizer.model_max_length = most
        path = write_tiny_classifier(tmp_path / str(most), tokenizer=tokenizer)
        setting = ("--set", f"ppo.safety.path={path}")
        if most == 20:
            rayward("run", recipe, "--out", most, *setting, *LAST_FAULT)
    assert rayward("run", recipe, "--out", "b", *setting) == (
        "ppo.sampling.max_prompt_tokens: got 256, expected so few that ppo.safety.path can read "
        "every prompt: 2 of 2 are longer than its 19 tokens, by its own tokenizer and without an "
        "answer"
    )
    tokenizer.chat_template = (
        "{% if messages | length > 2 %}{{ raise_exception('too much') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    tokenizer.save_pretrained(path)
    talk = (*PROMPT.messages, Message("assistant", "Yes?"), *PROMPT.messages)
    write_prompts(data.prompts("train"), [replace(PROMPT, messages=talk)])
    assert rayward("run", recipe, "--out", "c", *setting) == (
        f"ppo.safety.path: got '{path}', expected a chat template that takes the data's roles "
        "user, assistant, user (roles in an order that the chat template accepts (too much))"
    )
    # The policy's own template is the one of its own path, where it has one.
    own = write_tiny_llama(tmp_path / "policy")
    policy = load_tokenizer(str(own))
    policy.chat_template = tokenizer.chat_template
    policy.save_pretrained(own)
    for name in ("ppo.policy.path", "model.path"):
        line = rayward("run", recipe, "--out", name, "--set", f"{name}={own}")
        assert line.startswith(f"{name}: got '{own}', expected a chat template that takes the data")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"ppo.rollout.tensor_parallel_size": 2, "ppo.rollout.resources.gpus": 1.0},
            "ppo.rollout.resources.gpus: got 1.0, expected as many as "
            "ppo.rollout.tensor_parallel_size, which is 2",
        ),
        (
            {"ppo.rollout.resources.gpus": 2.0},
            "ppo.rollout.resources.gpus: got 2.0, expected as many as "
            "ppo.rollout.tensor_parallel_size, which is 1",
        ),
        (
            {"ppo.rollout.weight_sync.backend": "nccl"},
            "ppo.rollout.weight_sync.backend: got 'nccl', expected object_store, because "
            "ppo.policy.resources.gpus is 0",
        ),
        (
            {
                "ppo.rollout.weight_sync.backend": "ipc",
                "ppo.policy.resources.gpus": 0.5,
                "ppo.rollout.resources.gpus": 0.5,
            },
            "ppo.rollout.weight_sync.backend: got 'ipc', expected nccl, or policy and rollout in "
            "one group of ppo.colocate",
        ),
        (
            {"ppo.colocate": [["policy", "critic"]], "ppo.advantage_estimator": "grpo"},
            "ppo.colocate: got ['policy', 'critic'], expected roles without critic: grpo has none",
        ),
        (
            {
                "ppo.colocate": [["policy", "critic"]],
                "ppo.critic.resources.labels": {"ray.io/zone": "a"},
            },
            "ppo.colocate: got ['policy', 'critic'], expected roles with the same resources.labels",
        ),
        (
            {"ppo.sampling.top_p": 1.5},
            "ppo.sampling.top_p: got 1.5, expected a number of at most 1.0",
        ),
        (
            {"ppo.sampling.temperature": 0.0},
            "ppo.sampling.temperature: got 0.0, expected a number greater than 0.0",
        ),
        ({"ppo.steps": 0}, "ppo.steps: got 0, expected a number of at least 1"),
        (
            {"ppo.batch_size": 100},
            "ppo.minibatch_size: got 64, expected a divisor of batch_size, which is 100",
        ),
        (
            {"ppo.policy.deepspeed.zero_stage": 4},
            "ppo.policy.deepspeed.zero_stage: got 4, expected 0, 1, 2 or 3",
        ),
        (
            {"ppo.rollout.gpu_memory_utilization": 0.0},
            "ppo.rollout.gpu_memory_utilization: got 0.0, expected a number greater than 0.0",
        ),
        (
            {"sft.max_tokens": 7, "sft.epochs": 0},
            "sft.epochs: got 0, expected a number of at least 1 (1 more setting is wrong)",
        ),
    ],
)
def test_settings_that_cannot_be(
    rayward: Callable[..., str], recipe: Path, settings: dict[str, object], line: str
) -> None:
    given = [("--set", f"{name}={json.dumps(value)}") for name, value in settings.items()]
    assert rayward("run", recipe, "--out", "out", *(part for one in given for part in one)) == line


def test_an_attacker_has_settings_of_its_own(
    rayward: Callable[..., str], recipe: Path, data: DataDirectory, llama: Path
) -> None:
    write_prompts(data.prompts("train"), [replace(PROMPT, adversarial=True)])
    attacker = "red_teaming.attacker"
    stages = ("--set", "stages=[reward_safety, red_teaming]")
    run = ("run", recipe, *stages, "--set", f"{attacker}.path={llama}", "--out")
    split = ("--set", f"{attacker}.rollout={{tensor_parallel_size: 2, resources: {{gpus: 1}}}}")
    assert rayward(*run, "a", *split) == (
        f"{attacker}.rollout.resources.gpus: got 1.0, expected as many as "
        f"{attacker}.rollout.tensor_parallel_size, which is 2"
    )
    assert rayward(*run, "b", "--set", f"{attacker}.sampling.max_prompt_tokens=500") == (
        f"{attacker}.sampling.max_prompt_tokens + max_response_tokens: got 564, expected at most "
        "the attacker's 512 positions"
    )


def test_roles_that_do_not_fit_the_machine(
    ray_session: None,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ray says what there is: here the tests' own, which has no GPU."""
    monkeypatch.setattr(ray, "init", lambda **settings: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    gpus = [f"--set=ppo.{role}.resources.gpus=1.0" for role in ("policy", "rollout")]
    monkeypatch.setattr(sys, "argv", ["rayward", "run", str(recipe), "--out", "out", *gpus])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "rayward: ppo: resources: got {'GPU': 2.0}, expected no more than this machine has"
    )


def test_a_port_where_something_else_than_ray_answers(
    rayward: Callable[..., str], recipe: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        line = rayward("run", recipe, "--out", "out", "--address", address)
        assert time.monotonic() - began < 25
    assert line == (
        f"--address: got '{address}', expected host:port or ray://host:port of a running Ray "
        "cluster; what answers there is no Ray"
    )


def test_a_second_interrupt_says_how_to_go_on(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_recipe(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_recipe", run_recipe)
    monkeypatch.setattr(sys, "argv", ["rayward", "run", str(recipe)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "rayward: interrupted; --resume goes on\n")


def test_the_summary_is_all_that_is_printed(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a run without --out has a directory of its own, by name and time."""
    asked: list[tuple[object, ...]] = []

    def run_recipe(*arguments: object) -> dict[str, object]:
        asked.append(arguments)
        return {"a": 1.5}

    monkeypatch.setattr(runner, "run_recipe", run_recipe)
    monkeypatch.setattr(sys, "argv", ["rayward", "run", str(recipe), "--set", "seed=4"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"a": 1.5}
    ((given, out, resume, address),) = asked
    assert given == load_recipe(recipe, ["seed=4"])
    assert isinstance(out, Path)
    assert out.parent == Path("runs").absolute()
    assert out.name.startswith("t-20")
    assert (resume, address) == (False, None)


def test_an_import_of_nothing(rayward: Callable[..., str]) -> None:
    line = rayward("import", "jsonl", "none.jsonl", "--out", "data")
    assert "none.jsonl" in line
    Path("rows.jsonl").write_text('{"neither": "prompt"}\n')
    line = rayward("import", "jsonl", "rows.jsonl", "--out", "data")
    assert line.startswith("source: got 'rows.jsonl', expected at least one usable row; skipped:")
    line = rayward("import", "jsonl", "rows.jsonl", "--out", "data", "--held-out-share", 2)
    assert line.startswith("--held-out-share: got 2.0, expected a share")
    assert not Path("data").exists()


def test_the_program_itself_says_one_line_without_loading_torch(tmp_path: Path) -> None:
    """The installed program as a person runs it; -X importtime names what was imported."""
    program = Path(sys.executable).parent / "rayward"
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [program, "run", "none.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, done.stdout) == (2, "")
    assert len(lines) == 1
    assert lines[0].startswith("rayward: recipe: got 'none.yaml', expected ")
    names = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "rayward.cluster.cli" in names
    assert not {"torch", "vllm", "transformers", "deepspeed"} & names


def test_the_program_itself_says_one_line_with_everything_loaded(tmp_path: Path) -> None:
    """vLLM and DeepSpeed have words of their own as they are loaded; they stay out of it."""
    program = Path(sys.executable).parent / "rayward"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: t\ndata: {path: nowhere}\nmodel: {make: {}}\n")
    done = subprocess.run(
        [program, "run", recipe, "--out", tmp_path / "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("rayward: data.path: got 'nowhere', expected a folder with")


def test_resume_may_move(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From three nodes to two, say: another topology, and the same run."""
    RunDirectory.create(Path("out"), load_recipe(recipe)).close()
    Path("two.yaml").write_text("ppo: {safety: {replicas: 2, resources: {labels: {role: cpu}}}}\n")
    arguments = ["run", str(recipe), "--resume", "--out", "out", "--overlay", "two.yaml"]
    monkeypatch.setattr(sys, "argv", ["rayward", *arguments])
    with pytest.raises(pytest.fail.Exception, match="Ray was started"):
        main()
    safety = RunDirectory(tmp_path / "out").recipe().ppo.safety
    assert (safety.replicas, safety.resources.labels) == (2, {"role": "cpu"})


def test_an_overlay_that_is_wrong(rayward: Callable[..., str], recipe: Path) -> None:
    Path("one.yaml").write_text("ppo: {steps: 3}\n")
    Path("two.yaml").write_text("ppo: {kl: {betta: 1}}\n")
    run = ("run", recipe, "--out", "out", "--overlay")
    line = rayward(*run, "one.yaml", "--overlay", "two.yaml")
    assert line.startswith("two.yaml: ppo.kl.betta: got 1, expected a known setting; `rayward")
    assert rayward(*run, "none.yaml").startswith("--overlay: got 'none.yaml', expected a readable")
    assert rayward("submit", recipe, "--overlay", "two.yaml").startswith("two.yaml: ppo.kl.betta:")
    evaluate = ("evaluate", "model", "--data", "data", "--overlay", "two.yaml")
    assert rayward(*evaluate).startswith("two.yaml: ppo.kl.betta: got 1")
    assert not Path("out").exists()


def test_a_recipe_goes_by_its_name(rayward: Callable[..., str]) -> None:
    assert rayward("run", "demo", "--set", "ppo.stepz=3").startswith("ppo.stepz: got 3")
    assert rayward("submit", "demo", "--set", "ppo.stepz=3").startswith("ppo.stepz: got 3")
    for command in ("run", "submit"):
        line = rayward(command, "demmo")
        assert line.startswith("recipe: got 'demmo', expected a YAML file, or one of the recipes")
        assert line.endswith(": demo, hh-rlhf")


def test_auto_resume_begins_a_run_or_goes_on_with_it(
    rayward: Callable[..., str], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def run_recipe(given: Recipe, out: Path, resume: bool, address: str | None) -> dict[str, int]:
        asked.append(resume)
        (RunDirectory.resume if resume else RunDirectory.create)(out, given).close()
        return {}

    monkeypatch.setattr(runner, "run_recipe", run_recipe)
    run = ["run", str(recipe), "--out", "out", "--auto-resume"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["rayward", *run])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    assert asked == [False, True]
    # It is still the same recipe, and nobody else's folder.
    line = rayward(*run, "--set", "ppo.steps=3")
    assert line == "ppo.steps: got 3, expected 200, with which the run was started"
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    line = rayward("run", recipe, "--out", "mine", "--auto-resume")
    assert line.endswith("expected an empty directory; choose another or --resume")
    for arguments in (("--auto-resume",), ("--auto-resume", "--resume", "--out", "out")):
        line = rayward("run", recipe, *arguments)
        assert line.startswith("--auto-resume: got True, expected --out with it, and no --resume")
