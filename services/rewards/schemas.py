"""The bodies of `POST /v1/score`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from rayward.cluster.types import Axis, Message, MessageRole
from rayward.services.rewards.calls import Answered, Item, Written

DecidedBy = Literal["safety", "helpfulness", "both"]

Text = Annotated[str, Field(max_length=2**24)]
"""Of a length that no body limit allows; with a bound, pydantic refuses halves of surrogate pairs,
which JSON can carry and UTF-8 cannot."""

_MOST_TURNS = 1000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TurnBody(_Strict):
    """One turn of a conversation."""

    role: MessageRole
    content: Text


def _one_form(schema: dict[str, Any]) -> None:
    """Say in the OpenAPI document what the validator below holds."""
    answered = ["messages", "response"]
    schema["oneOf"] = [
        {"required": answered, "not": {"required": ["text"]}},
        {
            "required": ["text"],
            "not": {"anyOf": [{"required": [name]} for name in [*answered, "ended"]]},
        },
    ]


class ScoreItem(BaseModel):
    """A conversation: `messages` and the `response` to them, or the whole of it as a `text`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_one_form)

    messages: Annotated[list[TurnBody], Field(min_length=1, max_length=_MOST_TURNS)] = []
    """What the answer is to, oldest first."""
    response: Text = ""
    """The answer."""
    ended: bool = True
    """Whether the answer came to its end; false where it was cut at a length."""
    text: Text = ""
    """A whole conversation as the model's chat template wrote it, special tokens and all."""
    add_special_tokens: bool = False
    """Whether to add to `text` what the tokenizer puts around texts by itself."""
    adversarial: bool = False
    """The prompt's tag: on tagged prompts the piecewise mix lets the safety model decide."""

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        given = self.model_fields_set
        if "text" in given:
            both = sorted(given & {"messages", "response", "ended"})
            if both:
                raise ValueError(f"text and {both[0]} exclude each other")
        elif "messages" not in given or "response" not in given:
            raise ValueError("messages and response, or text")
        return self

    def item(self, field: str, truncate: Literal["left", "right"] | None) -> Item:
        """What a replica is asked to score."""
        content: Answered | Written
        if "text" in self.model_fields_set:
            content = Written(self.text, self.add_special_tokens)
        else:
            turns = tuple(Message(turn.role, turn.content) for turn in self.messages)
            content = Answered(turns, self.response, self.ended)
        return Item(field, content, self.adversarial, truncate)


class ScoreRequest(_Strict):
    """What to score, and how."""

    items: Annotated[list[ScoreItem], Field(min_length=1)]
    """The conversations; how many at most is a setting of the service."""
    models: Annotated[list[Axis], Field(min_length=1, max_length=2)] | None = None
    """Who scores. Null: every model that is served."""
    deterministic: bool | None = None
    """Equal bits for equal items whatever they are scored with, for more time. Null: as the
    service is set; true there holds for every request."""
    truncate: Literal[False, "left", "right"] = False
    """Where tokens are taken off conversations that a model has no room for. False: refuse them."""


class ModelScore(_Strict):
    """What one model says of one item."""

    logit: FiniteFloat
    probability: Annotated[float, Field(ge=0, le=1)]
    """The logit's sigmoid."""
    tokens: int
    """Tokens that were scored."""
    truncated: bool
    """Whether others were taken off."""


class ItemResult(_Strict):
    """What there is to say of one item."""

    scores: dict[Axis, ModelScore]
    """By model."""
    reward: FiniteFloat | None
    """By the configured mix; null unless both models scored."""
    decided_by: DecidedBy | None
    """Whose score the reward is."""
    under_safety_gate: bool | None
    """Whether the probability of being safe is below the gate; null without the safety model."""


class ModelVersion(_Strict):
    """Which model scored."""

    version: str
    """SHA-256 of its weights."""
    template_hash: str
    """SHA-256 of its chat template."""


class ScoreResponse(_Strict):
    """The scores, in the order of the items."""

    results: list[ItemResult]
    models: dict[Axis, ModelVersion]
    """Those that scored, by name."""
    mix: str
    """How the reward is made of two scores."""
    safety_gate: float
    """The probability below which an answer is under the gate."""
