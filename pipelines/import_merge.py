"""Rows from one source, or from several, as one set: collected, joined, split, written."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from cluster.tables import (
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
from cluster.types import Axis, Demonstration, PreferencePair, Prompt
from pipelines.import_rows import ImportedRow, RowSkipped, split_share

SPLITS: tuple[Split, ...] = ("train", "held_out", "validation")
TRAINING_SPLITS: tuple[TrainingSplit, ...] = ("train", "held_out")


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
    pairs: dict[str, int]


@dataclass
class Collected:
    """Prompts, demonstrations and pairs, each under what makes two of them the same.

    `prompts` by id, `demonstrations` by prompt id and response, `pairs` by prompt id, axis, chosen
    and rejected. The prompts inside demonstrations and pairs may be out of date: `prompts` is
    right.
    """

    prompts: dict[str, Prompt] = field(default_factory=dict)
    demonstrations: dict[tuple[str, str], Demonstration] = field(default_factory=dict)
    pairs: dict[tuple[str, Axis, str, str], PreferencePair] = field(default_factory=dict)
    _demonstrated: set[str] = field(default_factory=set)

    def add(self, row: ImportedRow) -> tuple[str, ...]:
        """Take a row in; returns the oddities to note, those of the row and those found here.

        A pair's chosen answer becomes a demonstration only where its prompt has none yet.

        Raises:
            RowSkipped: this very pair, demonstration or prompt is here already.
        """
        key = row.prompt.id
        noted = row.noted
        if row.pair is not None:
            chosen, rejected, axis = row.pair.chosen, row.pair.rejected, row.pair.axis
            if (key, axis, chosen, rejected) in self.pairs:
                raise RowSkipped("duplicate")
            if (key, axis, rejected, chosen) in self.pairs:
                noted += ("contradicts_another_pair",)
            self.pairs[key, axis, chosen, rejected] = row.pair
            if row.demonstration is not None and key in self._demonstrated:
                noted += ("prompt_has_demonstration",)
            elif row.demonstration is not None:
                self._demonstrate(row.demonstration)
        elif row.demonstration is not None:
            if (key, row.demonstration.response) in self.demonstrations:
                raise RowSkipped("duplicate")
            self._demonstrate(row.demonstration)
        elif key in self.prompts:
            raise RowSkipped("duplicate")
        self._add_prompt(row.prompt)
        return noted

    def join(self, later: "Collected") -> None:
        """Take all of `later` in; what is here already is replaced."""
        for prompt in later.prompts.values():
            self._add_prompt(prompt)
        for demonstration in later.demonstrations.values():
            self._demonstrate(demonstration)
        self.pairs.update(later.pairs)

    def splits(self, rule: SplitRule) -> dict[str, Split]:
        """The split of every prompt, by id."""
        return {key: rule.split(prompt) for key, prompt in self.prompts.items()}

    def sizes(self, splits: Mapping[str, Split]) -> Sizes:
        """Rows by table and split."""
        prompts = Counter(splits[key] for key in self.prompts)
        demonstrations, pairs = (
            Counter(_training_split(splits[key]) for key, *_ in keys)
            for keys in (self.demonstrations, self.pairs)
        )
        return Sizes(
            prompts={split: prompts[split] for split in SPLITS},
            demonstrations={split: demonstrations[split] for split in TRAINING_SPLITS},
            pairs={split: pairs[split] for split in TRAINING_SPLITS},
        )

    def _demonstrate(self, demonstration: Demonstration) -> None:
        self._demonstrated.add(demonstration.prompt.id)
        key = (demonstration.prompt.id, demonstration.response)
        self.demonstrations[key] = demonstration

    def _add_prompt(self, prompt: Prompt) -> None:
        known = self.prompts.get(prompt.id)
        self.prompts[prompt.id] = prompt if known is None else _agree(known, prompt)


def read_collected(directory: DataDirectory) -> Collected:
    """Everything in a data directory, whatever the split.

    Raises:
        InputError: a table is not as cluster/tables.py says.
    """
    found = Collected()
    for split in SPLITS:
        if directory.exists(path := directory.prompts(split)):
            found.prompts.update((prompt.id, prompt) for prompt in read_prompts(path))
    for part in TRAINING_SPLITS:
        if directory.exists(path := directory.demonstrations(part)):
            for row in read_demonstrations(path):
                found.demonstrations[row.prompt.id, row.response] = row
        if directory.exists(path := directory.preferences(part)):
            for pair in read_preferences(path):
                found.pairs[pair.prompt.id, pair.axis, pair.chosen, pair.rejected] = pair
    return found


def write_collected(
    directory: DataDirectory, collected: Collected, splits: Mapping[str, Split]
) -> None:
    """Write every table that has rows; prompts are the same in all of them.

    Args:
        directory: where to; its files are replaced.
        collected: all rows of the directory.
        splits: the split of every prompt, by id.
    """
    prompts = collected.prompts
    for split in SPLITS:
        if in_split := [prompt for key, prompt in prompts.items() if splits[key] == split]:
            write_prompts(directory.prompts(split), in_split)
    for part in TRAINING_SPLITS:
        if demonstrations := [
            dataclasses.replace(row, prompt=prompts[key])
            for (key, _), row in collected.demonstrations.items()
            if _training_split(splits[key]) == part
        ]:
            write_demonstrations(directory.demonstrations(part), demonstrations)
        if pairs := [
            dataclasses.replace(pair, prompt=prompts[key])
            for (key, *_), pair in collected.pairs.items()
            if _training_split(splits[key]) == part
        ]:
            write_preferences(directory.preferences(part), pairs)


def _training_split(split: Split) -> TrainingSplit:
    """Where a prompt's demonstrations and pairs go: those of validation prompts are held out."""
    return "train" if split == "train" else "held_out"


def _agree(known: Prompt, later: Prompt) -> Prompt:
    """One prompt of two that differ in their tags (rule: pipelines/import_data.py)."""
    adversarial = known.adversarial or later.adversarial
    return dataclasses.replace(
        known,
        adversarial=adversarial,
        borderline=(known.borderline or later.borderline) and not adversarial,
        risk_category=later.risk_category or known.risk_category,
        attack_vector=later.attack_vector or known.attack_vector,
    )
