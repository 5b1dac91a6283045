"""The bodies that other trainers' reward clients send and read. Fields of theirs that mean nothing
here are taken and left alone."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat

from rayward.services.rewards.schemas import Text

_Some = Field(min_length=1)


class GetRewardRequest(BaseModel):
    """OpenRLHF's (`--remote_rm_url`)."""

    query: Annotated[list[Text], _Some]
    """Prompt and answer as the policy's tokenizer decodes them, special tokens and all."""
    labels: list[Any] | None = None
    """One for each query; "adversarial" tags a prompt."""
    truncate: Literal[False, "left", "right"] = False
    """Not OpenRLHF's: where to take tokens off texts that are too long. False: refuse them."""


class GetRewardResponse(BaseModel):
    """OpenRLHF's."""

    rewards: list[FiniteFloat]
    scores: list[Annotated[float, Field(ge=0, le=1)]]
    """The rewards' sigmoids, which dynamic filtering reads."""
    extra_logs: dict[str, list[FiniteFloat]]
    """The logits by model."""


class ClassifyRequest(BaseModel):
    """vLLM's, which verl sends."""

    model: Text | None = None
    input: Text | Annotated[list[Text], _Some]
    use_activation: bool | None = None
    """Sigmoids and not logits."""
    activation: bool | None = None
    """The same under its older name."""
    add_special_tokens: bool = True
    truncate_prompt_tokens: Literal[-1] | None = None
    """-1: take off tokens that the model has no room for. Null: refuse."""
    truncation_side: Literal["left", "right"] | None = None
    """Where they are taken off. Null: at the left."""


class Classification(BaseModel):
    """One text's."""

    index: int
    label: str
    probs: list[FiniteFloat]
    num_classes: int


class Usage(BaseModel):
    """What was read."""

    prompt_tokens: int
    total_tokens: int


class CompletedUsage(Usage):
    """The same, as vLLM writes it."""

    completion_tokens: int = 0


class ClassifyResponse(BaseModel):
    """vLLM's."""

    id: str
    object: Literal["list"] = "list"
    created: int
    """Seconds since 1970."""
    model: str
    data: list[Classification]
    usage: CompletedUsage


class EmbeddingsRequest(BaseModel):
    """OpenAI's, in which SGLang and verl ask for rewards."""

    model: Text | None = None
    input: Text | Annotated[list[Text], _Some]
    encoding_format: Literal["float", "base64"] = "float"


class Embedding(BaseModel):
    """One text's logit: a list of one, or in base64 its four bytes."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[FiniteFloat] | str


class EmbeddingsResponse(BaseModel):
    """OpenAI's."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


_Sequence = Annotated[list[Text], Field(min_length=1, max_length=2)]


class PredictRequest(BaseModel):
    """Text Embeddings Inference's."""

    inputs: Text | _Sequence | Annotated[list[_Sequence], _Some]
    """A text; or a pair of a prompt and its answer; or a list of lists of one or two of them."""
    raw_scores: bool = False
    """Logits and not their sigmoids."""
    truncate: bool = False
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"


class Prediction(BaseModel):
    """One label's."""

    score: FiniteFloat
    label: str
