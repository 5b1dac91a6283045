"""The data of a run: read from a data directory, or generated as one first."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

from rayward.cluster.atomic import read_bytes
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.errors import InputError
from rayward.cluster.records.benchmarks import (
    ToxigenPrompt,
    TruthfulQuestion,
    read_toxigen,
    read_truthfulqa,
)
from rayward.cluster.records.tables import (
    BenchmarkName,
    DataDirectory,
    Split,
    TrainingSplit,
    read_demonstrations,
    read_preferences,
    read_prompts,
    write_demonstrations,
    write_preferences,
    write_prompts,
)
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.types import AXES, Axis, Demonstration, PreferencePair, Prompt
from rayward.pipelines.tiny_world.data import generate
from rayward.pipelines.tiny_world.oracle import Oracle

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class RunData:
    """Everything that a run learns from and is measured on. No held-out prompt is trained on."""

    demonstrations: list[Demonstration]
    held_out_demonstrations: list[Demonstration]
    safety_demonstrations: list[Demonstration]
    prompts: list[Prompt]
    validation_prompts: list[Prompt]
    held_out_prompts: list[Prompt]
    seed_prompts: list[Prompt]
    preferences: dict[Axis, list[PreferencePair]]
    held_out_preferences: dict[Axis, list[PreferencePair]]
    truthfulqa: list[TruthfulQuestion]
    toxigen: list[ToxigenPrompt]
    digests: dict[str, str]
    """SHA-256 of every table that is there, by its name below the data directory."""
    oracle: Oracle | None

    def require(self, table: str, rows: int) -> None:
        """Refuse data that a stage of the recipe can do nothing with.

        Args:
            table: what is wanted, as people know it.
            rows: how many of it there are.

        Raises:
            InputError: there are none.
        """
        if not rows:
            expected = "at least one row for the stages of this recipe"
            raise InputError(f"data: {table}", rows, expected)

    def require_replay(self, section: str, benign_replay: float) -> None:
        """Refuse to replay benign demonstrations where there are none.

        Args:
            section: of the recipe, that asks for it.
            benign_replay: benign demonstrations for each other one.

        Raises:
            InputError: there are none, and some are wanted.
        """
        if benign_replay and all(one.prompt.adversarial for one in self.demonstrations):
            raise InputError(
                f"{section}.benign_replay",
                benign_replay,
                "0, because the data has no demonstrations on benign prompts",
            )

    @property
    def adversarial(self) -> list[Prompt]:
        """The adversarial training prompts."""
        return [prompt for prompt in self.prompts if prompt.adversarial]


def load_data(recipe: Recipe, run: RunDirectory) -> RunData:
    """Read what the recipe names; a split without rows is an empty list.

    Raises:
        InputError: a table is missing, malformed or empty.
    """
    if recipe.data.tiny_world is not None:
        directory = DataDirectory(str(run.root / "data"))
        if not directory.is_complete():
            _write_tiny_world(recipe, directory)
    else:
        assert recipe.data.path is not None
        directory = DataDirectory(recipe.data.path)
        try:
            directory.require_complete()
        except InputError as error:
            raise InputError("data.path", recipe.data.path, error.expected) from error
    digests = _digests(directory)
    run.record_data(digests)
    pairs = _optional(directory, directory.preferences("train"), read_preferences)
    held_out_pairs = _optional(directory, directory.preferences("held_out"), read_preferences)
    return RunData(
        demonstrations=_optional(directory, directory.demonstrations("train"), read_demonstrations),
        held_out_demonstrations=_optional(
            directory, directory.demonstrations("held_out"), read_demonstrations
        ),
        safety_demonstrations=_optional(
            directory, directory.safety_demonstrations("train"), read_demonstrations
        ),
        prompts=_optional(directory, directory.prompts("train"), read_prompts),
        validation_prompts=_optional(directory, directory.prompts("validation"), read_prompts),
        held_out_prompts=_optional(directory, directory.prompts("held_out"), read_prompts),
        seed_prompts=_optional(directory, directory.prompts("seeds"), read_prompts),
        preferences={axis: [pair for pair in pairs if pair.axis == axis] for axis in AXES},
        held_out_preferences={
            axis: [pair for pair in held_out_pairs if pair.axis == axis] for axis in AXES
        },
        truthfulqa=_optional(directory, directory.benchmark("truthfulqa"), read_truthfulqa),
        toxigen=_optional(directory, directory.benchmark("toxigen"), read_toxigen),
        digests=digests,
        oracle=Oracle() if recipe.data.tiny_world is not None else None,
    )


def _optional(directory: DataDirectory, path: str, read: Callable[[str], list[_Row]]) -> list[_Row]:
    return read(path) if directory.exists(path) else []


def _digests(directory: DataDirectory) -> dict[str, str]:
    """SHA-256 of every table that is there."""
    splits: tuple[Split, ...] = get_args(Split)
    training_splits: tuple[TrainingSplit, ...] = get_args(TrainingSplit)
    tables = [directory.prompts(split) for split in splits]
    tables += [directory.demonstrations(split) for split in training_splits]
    tables += [directory.safety_demonstrations(split) for split in training_splits]
    tables += [directory.preferences(split) for split in training_splits]
    tables += [directory.benchmark(name) for name in get_args(BenchmarkName)]
    # A URI's options stay at the end of every path below it.
    base, mark, options = (
        directory.uri.partition("?") if "://" in directory.uri else (directory.uri, "", "")
    )
    return {
        table.removesuffix(mark + options).removeprefix(base.rstrip("/")): "sha256:"
        + hashlib.sha256(read_bytes(table)).hexdigest()
        for table in tables
        if directory.exists(table)
    }


def _write_tiny_world(recipe: Recipe, directory: DataDirectory) -> None:
    assert recipe.data.tiny_world is not None
    world = generate(recipe.seed, recipe.data.tiny_world)
    write_demonstrations(directory.demonstrations("train"), world.train_demonstrations)
    if world.safety_demonstrations:
        write_demonstrations(directory.safety_demonstrations("train"), world.safety_demonstrations)
    splits: dict[Split, Sequence[Prompt]] = {
        "train": world.train_prompts,
        "validation": world.validation_prompts,
        "held_out": world.held_out_prompts,
        "seeds": world.seed_prompts,
    }
    for split, prompts in splits.items():
        if prompts:
            write_prompts(directory.prompts(split), prompts)
    pairs: dict[TrainingSplit, Mapping[Axis, Sequence[PreferencePair]]] = {
        "train": world.train_preferences,
        "held_out": world.held_out_preferences,
    }
    for training_split, by_axis in pairs.items():
        both = [pair for axis in AXES for pair in by_axis[axis]]
        if both:
            write_preferences(directory.preferences(training_split), both)
    directory.mark_complete()
