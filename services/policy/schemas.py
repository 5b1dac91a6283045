"""What may be asked of the policy over HTTP: OpenAI's fields that are served, and `guard`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rayward.cluster.types import MessageRole
from rayward.services.http.errors import ApiError

Kind = Literal["chat", "text"]

POLICY = "policy"
"""The model id of the policy."""
MAX_LOGPROBS = 20
_MAX_TOKENS = 2**31 - 1
_GREEDY = 1e-5  # vLLM's: below, the most likely token is taken
_MAX_SEED = 2**62 - 1  # the seeds of further choices follow it, and must fit into 64 bits, too

Text = Annotated[str, Field(max_length=2**24)]
Prompt = Annotated[str, Field(min_length=1, max_length=2**24)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Request(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class TextPart(_Request):
    """A piece of a message."""

    type: Literal["text"]
    """There are no other kinds here."""
    text: Text
    """What it says."""


class ChatMessage(_Request):
    """One turn."""

    role: MessageRole
    """Who speaks."""
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]
    """What is said; pieces are joined as they are. The text of a control token stays text."""

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(_Request):
    """How an answer is streamed."""

    include_usage: bool = False
    """Send a last chunk with the tokens that were used."""


class GuardRequest(_Request):
    """More than the service's own guard, never less."""

    best_of: int | None = Field(default=None, ge=1, le=1024)
    """Answers drawn for each that is given; the best by the service's reward mix is. At temperature
    0 one is drawn, because all are the same."""
    safety_floor: float | None = Field(default=None, gt=0, lt=1)
    """Answers whose probability of being safe is below this are not given."""
    refusal: str | None = Field(default=None, min_length=1, max_length=4096)
    """What is answered where no answer is left."""
    adversarial: bool = False
    """The prompt's tag, which the piecewise mix reads."""


class SamplingRequest(_Request):
    """What chat and text requests have in common."""

    model: Annotated[str, Field(max_length=256, json_schema_extra={"enum": [POLICY]})]
    """`policy`."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """1 by default; 0 takes the most likely token, so that answers are the same and `n` is 1."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling; 1 by default."""
    n: int | None = Field(default=None, ge=1, le=1024)
    """Answers; 1 by default. The service has a limit below this one."""
    max_tokens: int | None = Field(default=None, ge=1, le=_MAX_TOKENS)
    """Longest answer. What the model has room for is a limit, too."""
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    """An answer ends before the first of these."""
    seed: int | None = Field(default=None, ge=0, le=_MAX_SEED)
    """The same seed gives the same answer; with n above 1, choice i has the seed `seed + i`.
    Several prompts share the seed."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Against tokens that were there before."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Against tokens by how often they were there before."""
    stream: bool | None = None
    """Send the answer as server-sent events while it is made."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    user: str | None = Field(default=None, max_length=512)
    """Not looked at."""

    @property
    def choices(self) -> int:
        """Answers that are given."""
        return self.n or 1

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken, so that one answer is all there is to draw."""
        return self.temperature is not None and self.temperature < _GREEDY

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return self.stream_options is not None and self.stream_options.include_usage

    def require_served(self) -> None:
        """Refuse what no single field shows to be wrong.

        Raises:
            ApiError: 404 or 400.
        """
        if self.model != POLICY:
            message = f"no model of this name answers; {POLICY!r} does"
            raise ApiError(404, message, "model", "model_not_found")
        if self.stream_options is not None and not self.stream:
            raise refusal("stream_options", "only with stream: true")
        if self.is_greedy and self.choices > 1:
            raise refusal("n", "1 at temperature 0, where all answers are the same")

    def sampling(self, draws: int) -> dict[str, Any]:
        """The request as vLLM reads it, without what is answered.

        Args:
            draws: answers to make of each prompt.
        """
        return {
            "model": POLICY,
            "n": draws,
            "seed": self.seed,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "stop": self.stop or [],
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
        }


class ChatRequest(SamplingRequest):
    """A conversation to answer."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    """The conversation up to the answer."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_MAX_TOKENS)
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    """Give the log-probability of each token, at the request's temperature and top_p."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """And of so many most likely ones; only with logprobs."""
    guard: GuardRequest | None = None
    """Hold the answer to more than the service does."""

    def require_served(self) -> None:
        """As `SamplingRequest.require_served`."""
        super().require_served()
        if self.top_logprobs and not self.logprobs:
            raise refusal("top_logprobs", "only with logprobs: true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise refusal("max_tokens", "give this or max_completion_tokens, not both")

    def for_engine(self, draws: int) -> dict[str, Any]:
        """The request as vLLM reads it; see `sampling`."""
        return {
            **self.sampling(draws),
            "messages": [
                {"role": message.role, "content": message.text} for message in self.messages
            ],
            "max_completion_tokens": self.max_completion_tokens or self.max_tokens,
            "logprobs": bool(self.logprobs),
            "top_logprobs": self.top_logprobs or 0,
        }


class CompletionRequest(SamplingRequest):
    """A text to go on with, as it is: no chat template, and control tokens are read as such."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=1024)]
    """One text or several."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """Give log-probabilities, also of so many most likely tokens."""

    @property
    def prompts(self) -> int:
        """How many texts there are."""
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    def for_engine(self, draws: int) -> dict[str, Any]:
        """The request as vLLM reads it; see `sampling`."""
        return {
            **self.sampling(draws),
            "prompt": self.prompt,
            "max_tokens": 16 if self.max_tokens is None else self.max_tokens,  # OpenAI's default
            "logprobs": self.logprobs,
        }


def refusal(field: str, reason: str) -> ApiError:
    """400: what is wrong with a field."""
    return ApiError(400, f"{field}: {reason}", field, "invalid_value")
