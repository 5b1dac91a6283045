"""Rewrites of prompts by attack vector (Llama 2, section 4.2.1), as Jinja templates in YAML.

    extends: default                    # optional: add to the file that comes with Rayward
    request: 'how do i [a-z]+ .*'       # optional: what of a prompt is rewritten, a pattern
    lexicons: {typos: {how: hwo}}       # for the filter words("typos")
    vectors: {syntactic_manipulation: ['{{ prompt | words("typos") }}']}
    attacker: {syntactic_manipulation: 'Misspell this: {{ prompt }}'}

A template that comes out blank or leaves the prompt as it was does not fit that prompt; another
of its vector is then tried.
"""

import codecs
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jinja2 import Template, TemplateRuntimeError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field

from rayward.cluster.config.base import Settings
from rayward.cluster.errors import InputError
from rayward.cluster.types import AttackVector
from rayward.pipelines.run.user_files import (
    compile_template,
    place,
    read_file,
    render,
    require_text,
    sandbox,
)

_SETTING = "red_teaming.templates"
_VARIABLE = "prompt"
# A template that uses the prompt makes different texts of these.
_PROBES = (
    "how do i bake a cake in paris ?",
    "what is the best way to paint a small door at home ?",
)
# A word, with apostrophes inside, or one mark.
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_LEET = str.maketrans("aeiostAEIOST", "431057431057")


class _TemplatesFile(Settings):
    """What a file of rewrites holds."""

    extends: Literal["default"] | None = None
    """Adds to the file that comes with Rayward, or with the tiny world; null stands alone."""
    request: str | None = None
    """A regular expression: its first match in a prompt is rewritten; null: the whole prompt."""
    lexicons: dict[str, dict[str, str]] = Field(default_factory=dict)
    """By name: word or punctuation mark to what replaces it. Case does not count."""
    vectors: dict[AttackVector, Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """Templates of `prompt`, by attack vector."""
    attacker: dict[AttackVector, str] = Field(default_factory=dict)
    """What an attacker model is asked, a template of `prompt`, by attack vector."""


@dataclass(frozen=True)
class Rewrite:
    """A rewritten text and the template that made it."""

    text: str
    template: str  # VECTOR/INDEX, where the templates of a file that was added to come first


@dataclass(frozen=True)
class _OneTemplate:
    vector: AttackVector
    compiled: Template
    where: str  # for errors

    def render(self, text: str) -> str:
        return render(self.compiled, {_VARIABLE: text}, self.where)


@dataclass(frozen=True)
class AttackTemplates:
    """Rewrites by attack vector, ready to use."""

    _request: re.Pattern[str] | None
    _templates: Mapping[str, _OneTemplate]  # by name
    _instructions: Mapping[AttackVector, _OneTemplate]

    def rewrite(self, text: str, vector: AttackVector, rng: np.random.Generator) -> Rewrite | None:
        """Rewrite a user's message by a drawn template of the vector.

        Returns:
            None where the message holds no request, or no template of the vector fits it.

        Raises:
            InputError: a template failed on this message.
        """
        names = self.names(vector)
        for index in rng.permutation(len(names)):
            rewritten = self.apply(names[index], text)
            if rewritten is not None:
                return Rewrite(rewritten, names[index])
        return None

    def names(self, vector: AttackVector) -> list[str]:
        """The names of a vector's templates."""
        return [name for name, one in self._templates.items() if one.vector == vector]

    def apply(self, name: str, text: str) -> str | None:
        """Rewrite a user's message by one template; None where it does not fit.

        Raises:
            InputError: the template failed on this message.
        """
        request = self._find(text)
        if request is None:
            return None
        rewritten = self._templates[name].render(request)
        return None if rewritten in ("", request) else rewritten

    def instruction(self, text: str, vector: AttackVector) -> str:
        """What an attacker model is asked, to rewrite a user's message by the vector.

        Raises:
            InputError: the instruction's template failed on this message.
        """
        return self._instructions[vector].render(text)

    def _find(self, text: str) -> str | None:
        if self._request is None:
            return text.strip()
        match = self._request.search(text)
        return match.group().strip() if match else None


def load_attack_templates(
    path: str | None, tiny_world: bool, vectors: Sequence[AttackVector], attacker: bool
) -> AttackTemplates:
    """Read a file of rewrites.

    Args:
        path: the file; None for the one that comes with Rayward, or with the tiny world.
        tiny_world: whether the tiny world's is the default.
        vectors: each must have a template.
        attacker: each must have an instruction to an attacker model too.

    Raises:
        InputError: names the file, the vector, which of its templates (from 0), and what is wrong.
    """
    default = (
        files("rayward.pipelines.tiny_world" if tiny_world else "rayward.pipelines.red_teaming")
        / "attack_vectors.yaml"
    )
    own: Path | Traversable = default if path is None else Path(path)
    parsed = read_file(own, _TemplatesFile, _SETTING)
    read: list[tuple[Path | Traversable, _TemplatesFile]] = [(own, parsed)]
    if parsed.extends == "default":
        read.insert(0, (default, read_file(default, _TemplatesFile, _SETTING)))
    request: re.Pattern[str] | None = None
    lexicons: dict[str, dict[str, str]] = {}
    templates: dict[str, _OneTemplate] = {}
    count: Counter[AttackVector] = Counter()
    instructions: dict[AttackVector, _OneTemplate] = {}
    for file, content in read:
        if content.request is not None:
            request = _pattern(content.request, place(file, "request"))
        lexicons |= _lexicons(content, file)
        environment = _environment(dict(lexicons))
        for vector, sources in content.vectors.items():
            require_text(sources, file, "vectors", vector)
            for index, source in enumerate(sources):
                where = place(file, "vectors", vector, index)
                templates[f"{vector}/{count[vector]}"] = _compile(
                    environment, vector, source, where
                )
                count[vector] += 1
        for vector, source in content.attacker.items():
            where = place(file, "attacker", vector)
            instructions[vector] = _compile(environment, vector, source, where)
    for vector in vectors:
        if not count[vector]:
            expected = "at least one template, for red_teaming.vectors names it"
            raise InputError(place(own, "vectors", vector), None, expected)
        if attacker and vector not in instructions:
            expected = "an instruction to the model of red_teaming.attacker"
            raise InputError(place(own, "attacker", vector), None, expected)
    return AttackTemplates(request, templates, instructions)


def leet(text: str) -> str:
    """Digits in place of the letters that look like them."""
    return text.translate(_LEET)


def rot13(text: str) -> str:
    """Each Latin letter moved by thirteen places; twice gives the text back."""
    return codecs.encode(text, "rot13")


def replace_words(text: str, lexicon: Mapping[str, str]) -> str:
    """Replace whole words and marks; everything else stays, white space too.

    Args:
        text: the text.
        lexicon: case-folded word or mark to what replaces it. A word that begins with a capital
            is replaced by one that does.
    """

    def replaced(match: re.Match[str]) -> str:
        word = match.group()
        other = lexicon.get(word.casefold())
        if other is None:
            return word
        return other[:1].upper() + other[1:] if word[:1].isupper() else other

    return _WORD.sub(replaced, text)


def _environment(lexicons: Mapping[str, Mapping[str, str]]) -> SandboxedEnvironment:
    environment = sandbox()
    environment.filters |= {
        "leet": leet,
        "rot13": rot13,
        "words": partial(_words, lexicons=lexicons),
    }
    return environment


def _words(text: str, name: str, lexicons: Mapping[str, Mapping[str, str]]) -> str:
    if name not in lexicons:
        raise TemplateRuntimeError(f"no lexicon {name!r}")
    return replace_words(text, lexicons[name])


def _compile(
    environment: SandboxedEnvironment, vector: AttackVector, source: str, where: str
) -> _OneTemplate:
    one = _OneTemplate(vector, compile_template(environment, source, _VARIABLE, where), where)
    first, second = (one.render(probe) for probe in _PROBES)
    if first and first == second:
        expected = "a template that says something else of another prompt"
        raise InputError(where, source, expected)
    return one


def _pattern(source: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(source)
    except re.error as error:
        raise InputError(where, source, f"a regular expression ({error})") from error


def _lexicons(content: _TemplatesFile, file: Path | Traversable) -> dict[str, dict[str, str]]:
    for name, lexicon in content.lexicons.items():
        for word in lexicon:
            if not _WORD.fullmatch(word):
                raise InputError(place(file, "lexicons", name), word, "one word or mark")
    return {
        name: {word.casefold(): other for word, other in lexicon.items()}
        for name, lexicon in content.lexicons.items()
    }
