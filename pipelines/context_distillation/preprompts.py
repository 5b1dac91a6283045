"""Safety preprompts for context distillation (Llama 2, section 4.2.4), read from YAML.

generic: [You are a safe and responsible assistant.]
adjective_templates: ['You are a {{ adjectives }} assistant.']
adjectives: [responsible, respectful, wise]
adjectives_drawn: 2
categories: {unqualified_advice: [You are no doctor, and say so.]}
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from rayward.cluster.config.base import Settings
from rayward.cluster.errors import InputError
from rayward.cluster.records.distilled import Preprompt
from rayward.cluster.types import Message, Prompt, RiskCategory
from rayward.pipelines.run.user_files import (
    compile_template,
    place,
    read_file,
    render,
    require_text,
    sandbox,
)

_SETTING = "context_distillation.preprompts"
_COUNT_SETTING = "context_distillation.preprompts_per_prompt"
_VARIABLE = "adjectives"


class _PrepromptsFile(Settings):
    """What a file of preprompts holds."""

    generic: list[str] = Field(default_factory=list)
    """Preprompts for any prompt."""
    adjective_templates: list[str] = Field(default_factory=list)
    """Templates of `adjectives`, for any prompt."""
    adjectives: list[str] = Field(default_factory=list)
    """What the templates are filled with."""
    adjectives_drawn: int = Field(default=2, ge=1, le=3)
    """How many of them at once."""
    categories: dict[RiskCategory, Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """Preprompts for prompts of one risk category: how such a prompt is answered well."""


@dataclass(frozen=True)
class Preprompts:
    """Every preprompt of a file."""

    generic: Sequence[Preprompt]
    by_adjectives: Sequence[Preprompt]
    by_category: Mapping[RiskCategory, Sequence[Preprompt]]

    def choose(
        self, rng: np.random.Generator, risk_category: RiskCategory | None, count: int
    ) -> list[Preprompt]:
        """Draw different preprompts for a prompt.

        Each is drawn by its kind first, so that the many by adjectives do not crowd out the few
        others; those of a category are drawn only for it.

        Args:
            rng: where the draws come from.
            risk_category: of the prompt; None where it is not known.
            count: how many.

        Raises:
            InputError: there are not so many.
        """
        own = self.by_category.get(risk_category, ()) if risk_category else ()
        kinds = [list(kind) for kind in (self.generic, self.by_adjectives, own) if kind]
        _require(count, sum(map(len, kinds)))
        chosen: list[Preprompt] = []
        while len(chosen) < count:
            kind = kinds[rng.integers(len(kinds))]
            chosen.append(kind.pop(rng.integers(len(kind))))
            kinds = [one for one in kinds if one]
        return chosen

    def require(self, count: int) -> None:
        """Refuse to draw more than there are for any prompt.

        Raises:
            InputError: there are not so many.
        """
        _require(count, len(self.generic) + len(self.by_adjectives))


def load_preprompts(path: str | None, tiny_world: bool) -> Preprompts:
    """Read a file of preprompts.

    Args:
        path: the file; None for the one that comes with Rayward, or with the tiny world.
        tiny_world: whether the tiny world's is the default.

    Raises:
        InputError: names the file, the entry (from 0), and what is wrong.
    """
    folder = "tiny_world" if tiny_world else "context_distillation"
    default = files("rayward.pipelines") / folder / "preprompts.yaml"
    file: Path | Traversable = default if path is None else Path(path)
    content = read_file(file, _PrepromptsFile, _SETTING)
    require_text(content.generic, file, "generic")
    require_text(content.adjectives, file, "adjectives")
    for category, texts in content.categories.items():
        require_text(texts, file, "categories", category)
    seen: set[str] = set()
    generic = _unseen(
        (Preprompt(f"generic/{i}", "generic", text) for i, text in enumerate(content.generic)), seen
    )
    by_adjectives = _unseen(_by_adjectives(content, file), seen)
    if not generic and not by_adjectives:
        expected = "at least one, here or by adjectives, for prompts of an unknown category"
        raise InputError(place(file, "generic"), [], expected)
    by_category = {
        category: _unseen(
            (
                Preprompt(f"categories/{category}/{i}", "category", text)
                for i, text in enumerate(texts)
            ),
            set(seen),
        )
        for category, texts in content.categories.items()
    }
    return Preprompts(generic, by_adjectives, by_category)


def with_preprompt(prompt: Prompt, preprompt: Preprompt) -> Prompt:
    """The prompt behind a preprompt, under its own id.

    The preprompt is the system message; a system message that is there already follows it after
    a blank line.
    """
    system, turns = preprompt.text, prompt.messages
    if turns and turns[0].role == "system":
        system, turns = f"{system}\n\n{turns[0].content}", turns[1:]
    return replace(prompt, messages=(Message("system", system), *turns))


def _by_adjectives(content: _PrepromptsFile, file: Path | Traversable) -> list[Preprompt]:
    """Every template with every choice of adjectives, in the order of the file."""
    if content.adjective_templates and len(content.adjectives) < content.adjectives_drawn:
        where = place(file, "adjectives_drawn")
        expected = f"at most the {len(content.adjectives)} adjectives that there are"
        raise InputError(where, content.adjectives_drawn, expected)
    made = []
    for index, source in enumerate(content.adjective_templates):
        where = place(file, "adjective_templates", index)
        template = compile_template(sandbox(), source, _VARIABLE, where)
        for drawn in combinations(content.adjectives, content.adjectives_drawn):
            text = render(template, {_VARIABLE: _listed(drawn)}, where)
            if not text:
                raise InputError(where, source, "a template that does not come out blank")
            made.append(
                Preprompt(f"adjective_templates/{index}/{'+'.join(drawn)}", "adjectives", text)
            )
    return made


def _listed(words: Sequence[str]) -> str:
    """As in "safe", "safe and wise", "safe, wise and kind"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _unseen(preprompts: Iterable[Preprompt], seen: set[str]) -> list[Preprompt]:
    """Those whose text is not in `seen`, which gets it: a text is drawn once."""
    kept = []
    for one in preprompts:
        if one.text not in seen:
            seen.add(one.text)
            kept.append(one)
    return kept


def _require(count: int, available: int) -> None:
    if count > available:
        expected = f"at most {available}, for there are no more preprompts"
        raise InputError(_COUNT_SETTING, count, expected)
