"""Rows from one source, or from several, as one set: collected, joined, split, written."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from rayward.cluster.atomic import is_file, resolve
from rayward.cluster.records.tables import (
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
from rayward.cluster.types import Axis, Demonstration, PreferencePair, Prompt
from rayward.pipelines.data.rows import ImportedRow, RowSkipped, split_share

SPLITS: tuple[Split, ...] = ("train", "held_out", "validation")
TRAINING_SPLITS: tuple[TrainingSplit, ...] = ("train", "held_out")

_Answers = dict[tuple[str, str], Demonstration]
_Item = TypeVar("_Item")


class SplitRule(BaseModel):
    """Which split a prompt is in: a digest of its text and the seed decides."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    seed: int
    held_out_share: float
    validation_share: float

    def split(self, prompt: Prompt) -> Split:
        """The split of a prompt."""
        share = split_share(prompt, self.seed)
        if share < self.held_out_share:
            return "held_out"
        return "validation" if share < self.held_out_share + self.validation_share else "train"


class Sizes(BaseModel):
    """Rows by table and split."""

    model_config = ConfigDict(frozen=True)

    prompts: dict[str, int]
    demonstrations: dict[str, int]
    safety_demonstrations: dict[str, int]
    pairs: dict[str, int]


@dataclass
class Collected:
    """Prompts, demonstrations and pairs, each under what makes two of them the same.

    `prompts` by id, both kinds of demonstrations by prompt id and response, `pairs` by prompt id,
    axis, chosen and rejected. The prompts inside demonstrations and pairs may be out of date:
    `prompts` is right. An answer is a demonstration of one kind: a safety demonstration stays one,
    but not if any row calls it unsafe.
    """

    prompts: dict[str, Prompt] = field(default_factory=dict)
    demonstrations: _Answers = field(default_factory=dict)
    safety_demonstrations: _Answers = field(default_factory=dict)
    pairs: dict[tuple[str, Axis, str, str], PreferencePair] = field(default_factory=dict)
    _demonstrated: set[str] = field(default_factory=set)
    _unsafe: set[tuple[str, str]] = field(default_factory=set)

    def add(self, row: ImportedRow) -> tuple[str, ...]:
        """Take a row in; returns the oddities to note, those of the row and those found here.

        A pair's answer becomes a demonstration only where its prompt has none yet.

        Raises:
            RowSkipped: all that the row brings, its pairs or its answer or else its prompt, is
                here already.
        """
        if self._has(row):
            raise RowSkipped("duplicate")
        key = row.prompt.id
        noted = list(row.noted)
        for pair in row.pairs:
            chosen, rejected, axis = pair.chosen, pair.rejected, pair.axis
            if (key, axis, chosen, rejected) in self.pairs:
                noted.append("pair_is_duplicate")
                continue
            if (key, axis, rejected, chosen) in self.pairs:
                noted.append("contradicts_another_pair")
            self.pairs[key, axis, chosen, rejected] = pair
        for response in row.unsafe_responses:
            self._unsafe.add((key, response))
            if self.safety_demonstrations.pop((key, response), None) is not None:
                self._demonstrated.discard(key)
                noted.append("safety_labels_differ")
        answer = row.demonstration
        if answer is not None and row.is_safety_demonstration and self._is_unsafe(answer):
            noted.append("safety_labels_differ")
        elif answer is not None and row.pairs and key in self._demonstrated:
            noted.append("prompt_has_demonstration")
        elif answer is not None:
            self._demonstrate(answer, row.is_safety_demonstration)
        self._add_prompt(row.prompt)
        return tuple(dict.fromkeys(noted))

    def join(self, later: "Collected") -> None:
        """Take all of `later` in; what is here already is replaced."""
        for prompt in later.prompts.values():
            self._add_prompt(prompt)
        for key in later._unsafe:
            self.safety_demonstrations.pop(key, None)
        for demonstration in later.demonstrations.values():
            self._demonstrate(demonstration, is_safety=False)
        for demonstration in later.safety_demonstrations.values():
            self._demonstrate(demonstration, is_safety=True)
        self.pairs.update(later.pairs)

    def splits(self, rule: SplitRule) -> dict[str, Split]:
        """The split of every prompt, by id."""
        return {key: rule.split(prompt) for key, prompt in self.prompts.items()}

    def sizes(self, splits: Mapping[str, Split]) -> Sizes:
        """Rows by table and split."""
        prompts = Counter(splits[key] for key in self.prompts)
        demonstrations, safety_demonstrations, pairs = (
            Counter(_training_split(splits[key]) for key, *_ in keys)
            for keys in (self.demonstrations, self.safety_demonstrations, self.pairs)
        )
        return Sizes(
            prompts={split: prompts[split] for split in SPLITS},
            demonstrations={split: demonstrations[split] for split in TRAINING_SPLITS},
            safety_demonstrations={
                split: safety_demonstrations[split] for split in TRAINING_SPLITS
            },
            pairs={split: pairs[split] for split in TRAINING_SPLITS},
        )

    def _has(self, row: ImportedRow) -> bool:
        """Whether all that a row brings is here already."""
        key = row.prompt.id
        if row.pairs:
            keys = [(key, pair.axis, pair.chosen, pair.rejected) for pair in row.pairs]
            return all(pair in self.pairs for pair in keys)
        if row.demonstration is not None:
            answer = (key, row.demonstration.response)
            ordinary = answer in self.demonstrations and not row.is_safety_demonstration
            return ordinary or answer in self.safety_demonstrations
        if row.unsafe_responses:
            return all((key, response) in self._unsafe for response in row.unsafe_responses)
        return key in self.prompts

    def _is_unsafe(self, answer: Demonstration) -> bool:
        return (answer.prompt.id, answer.response) in self._unsafe

    def _demonstrate(self, demonstration: Demonstration, is_safety: bool) -> None:
        self._demonstrated.add(demonstration.prompt.id)
        key = (demonstration.prompt.id, demonstration.response)
        if is_safety:
            self.demonstrations.pop(key, None)
            self.safety_demonstrations[key] = demonstration
        elif key not in self.safety_demonstrations:
            self.demonstrations[key] = demonstration

    def _add_prompt(self, prompt: Prompt) -> None:
        known = self.prompts.get(prompt.id)
        self.prompts[prompt.id] = prompt if known is None else _agree(known, prompt)


def read_collected(directory: DataDirectory) -> Collected:
    """Everything in a data directory, whatever the split.

    Raises:
        InputError: a table is not as cluster/records/tables.py says.
    """
    found = Collected()
    for split in SPLITS:
        if directory.exists(path := directory.prompts(split)):
            found.prompts.update((prompt.id, prompt) for prompt in read_prompts(path))
    for part in TRAINING_SPLITS:
        for path, answers in (
            (directory.demonstrations(part), found.demonstrations),
            (directory.safety_demonstrations(part), found.safety_demonstrations),
        ):
            if directory.exists(path):
                answers.update(
                    ((row.prompt.id, row.response), row) for row in read_demonstrations(path)
                )
        if directory.exists(path := directory.preferences(part)):
            for pair in read_preferences(path):
                found.pairs[pair.prompt.id, pair.axis, pair.chosen, pair.rejected] = pair
    return found


def write_collected(
    directory: DataDirectory, collected: Collected, splits: Mapping[str, Split]
) -> None:
    """Write every table that has rows; prompts are the same in all of them.

    Args:
        directory: where to; its files are replaced, those of tables without rows deleted.
        collected: all rows of the directory.
        splits: the split of every prompt, by id.
    """
    prompts = collected.prompts
    for split in SPLITS:
        in_split = [prompt for key, prompt in prompts.items() if splits[key] == split]
        _put(directory.prompts(split), in_split, write_prompts)
    for part in TRAINING_SPLITS:
        for path, answers in (
            (directory.demonstrations(part), collected.demonstrations),
            (directory.safety_demonstrations(part), collected.safety_demonstrations),
        ):
            shown = [
                dataclasses.replace(row, prompt=prompts[key])
                for (key, _), row in answers.items()
                if _training_split(splits[key]) == part
            ]
            _put(path, shown, write_demonstrations)
        pairs = [
            dataclasses.replace(pair, prompt=prompts[key])
            for (key, *_), pair in collected.pairs.items()
            if _training_split(splits[key]) == part
        ]
        _put(directory.preferences(part), pairs, write_preferences)


def _put(uri: str, rows: list[_Item], write: Callable[[str, list[_Item]], None]) -> None:
    if rows:
        write(uri, rows)
    elif is_file(uri):
        filesystem, path = resolve(uri)
        filesystem.delete_file(path)


def _training_split(split: Split) -> TrainingSplit:
    """Where a prompt's demonstrations and pairs go: those of validation prompts are held out."""
    return "train" if split == "train" else "held_out"


def _agree(known: Prompt, later: Prompt) -> Prompt:
    """One prompt of two that differ in their tags (rule: pipelines/data/import_data.py)."""
    adversarial = known.adversarial or later.adversarial
    return dataclasses.replace(
        known,
        adversarial=adversarial,
        borderline=(known.borderline or later.borderline) and not adversarial,
        risk_category=later.risk_category or known.risk_category,
        attack_vector=later.attack_vector or known.attack_vector,
    )
