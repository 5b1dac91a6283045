"""What the gateway asks a reward model's replica, and what that answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from ray.serve.exceptions import BackPressureError

from rayward.cluster.errors import InputError, UnscoredError
from rayward.cluster.types import Message

Cut = Literal["left", "right"]


@dataclass(frozen=True)
class Answered:
    """A conversation and the answer to it, as the policy's trainer has them."""

    messages: tuple[Message, ...]
    response: str
    ended: bool = True

    @property
    def texts(self) -> list[str]:
        """What is said, turn by turn."""
        return [*(message.content for message in self.messages), self.response]

    def with_texts(self, texts: Sequence[str]) -> Self:
        """The same turns with something else said in each."""
        *contents, response = texts
        messages = [
            Message(message.role, content)
            for message, content in zip(self.messages, contents, strict=True)
        ]
        return replace(self, messages=tuple(messages), response=response)


@dataclass(frozen=True)
class Written:
    """A whole conversation as a chat template wrote it; special tokens' texts are those tokens."""

    text: str
    add_special_tokens: bool = False
    end_anew: bool = False
    """Take the padding and end tokens off both ends first and put one end token on."""

    @property
    def texts(self) -> list[str]:
        """The text alone."""
        return [self.text]

    def with_texts(self, texts: Sequence[str]) -> Self:
        """Another text, of the same kind."""
        (text,) = texts
        return replace(self, text=text)


@dataclass(frozen=True)
class Item:
    """One conversation to score."""

    field: str
    """Where it is in the request, for errors."""
    content: Answered | Written
    adversarial: bool = False
    """The prompt's tag, for the mix."""
    truncate: Cut | None = None
    """Where to take tokens off that the model has no room for. None: refuse."""


@dataclass(frozen=True)
class ItemScore:
    """What one model says of one item."""

    logit: float
    tokens: int
    """That were scored."""
    truncated: bool


@dataclass(frozen=True)
class ModelScores:
    """What one model says of all items of a call."""

    version: str
    """A hash of its weights."""
    template_hash: str
    """SHA-256 of its chat template."""
    items: tuple[ItemScore, ...]


Refusal = InputError | UnscoredError | BackPressureError
"""Why there are no scores: an item is wrong, the model failed, or too many items wait."""
