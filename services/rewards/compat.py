"""Scoring as other trainers ask for it: OpenRLHF, vLLM and verl, OpenAI and SGLang, TEI.

Their field `model` says which score is meant: `safety`, `helpfulness`, or `combined`, the reward
by the configured mix, which is also meant where there is no such field. A model's path names it
too, as with vLLM.
"""

import base64
import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Depends, Response

from rayward.cluster.errors import InputError
from rayward.cluster.logits import probability
from rayward.cluster.types import Axis, Message
from rayward.services.http.access import needs
from rayward.services.http.backends import Backends
from rayward.services.http.errors import documented
from rayward.services.rewards.calls import Answered, Cut, Item, Written
from rayward.services.rewards.compat_schemas import (
    Classification,
    ClassifyRequest,
    ClassifyResponse,
    CompletedUsage,
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    GetRewardRequest,
    GetRewardResponse,
    Prediction,
    PredictRequest,
    Usage,
)
from rayward.services.rewards.schemas import Text
from rayward.services.rewards.scoring import Scored, require_count, score_items

MODELS_HEADER = "X-Rayward-Models"
"""Of each model that was asked its version, template hash, and how many items were truncated."""
_COMBINED = "combined"
_LABEL = "LABEL_0"  # what transformers calls the only class of a model
_ADVERSARIAL = "adversarial"


@dataclass(frozen=True)
class _Values:
    """One score for each of N items, under the name that it was asked by."""

    name: str
    values: list[float]
    scored: Scored

    @property
    def tokens(self) -> int:
        """Read by the first of the models."""
        return sum(item.tokens for item in next(iter(self.scored.models.values())).items)


def drop_in_routes(backends: Backends) -> APIRouter:
    """The routes that other trainers' clients know."""
    errors = documented(401, 403, 413, 422, 429, 503)
    router = APIRouter(tags=["drop-ins"], dependencies=[Depends(needs("score"))], responses=errors)

    @router.post("/get_reward")
    async def get_reward(request: GetRewardRequest, response: Response) -> GetRewardResponse:
        """OpenRLHF's remote reward model, with its `serve_rm`'s handling of end tokens."""
        require_count(backends, len(request.query), "query")
        tags = _tags(request)
        items = [
            Item(f"query.{i}", Written(text, end_anew=True), tag, request.truncate or None)
            for i, (text, tag) in enumerate(zip(request.query, tags, strict=True))
        ]
        found = await _score(backends, items, None)
        _tell(response, found.scored)
        return GetRewardResponse(
            rewards=found.values,
            scores=[probability(value) for value in found.values],
            extra_logs={
                axis: [item.logit for item in model.items]
                for axis, model in found.scored.models.items()
            },
        )

    @router.post("/classify")
    async def classify(request: ClassifyRequest, response: Response) -> ClassifyResponse:
        """vLLM's classification, as verl asks for it; logits unless sigmoids are asked for."""
        cut: Cut | None = None
        if request.truncate_prompt_tokens is not None:
            cut = request.truncation_side or "left"
        items = _items(backends, request.input, request.add_special_tokens, cut)
        found = await _score(backends, items, request.model)
        _tell(response, found.scored)
        values = found.values
        if request.use_activation or request.activation:
            values = [probability(value) for value in values]
        return ClassifyResponse(
            id=f"classify-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=found.name,
            data=[
                Classification(index=i, label=_LABEL, probs=[value], num_classes=1)
                for i, value in enumerate(values)
            ],
            usage=CompletedUsage(prompt_tokens=found.tokens, total_tokens=found.tokens),
        )

    @router.post("/v1/embeddings")
    async def embeddings(request: EmbeddingsRequest, response: Response) -> EmbeddingsResponse:
        """OpenAI's embeddings, of one number: the logit."""
        items = _items(backends, request.input, True, None)
        found = await _score(backends, items, request.model)
        _tell(response, found.scored)
        packed = request.encoding_format == "base64"
        return EmbeddingsResponse(
            model=found.name,
            data=[
                Embedding(index=i, embedding=_packed(value) if packed else [value])
                for i, value in enumerate(found.values)
            ],
            usage=Usage(prompt_tokens=found.tokens, total_tokens=found.tokens),
        )

    @router.post("/predict")
    async def predict(
        request: PredictRequest, response: Response, model: Text | None = None
    ) -> list[Prediction] | list[list[Prediction]]:
        """Text Embeddings Inference's; a pair is a prompt and its answer."""
        side: Cut = "left" if request.truncation_direction.lower() == "left" else "right"
        sequences, is_batch = _sequences(request)
        require_count(backends, len(sequences), "inputs")
        items = [
            Item(
                f"inputs.{i}" if is_batch else "inputs",
                _pair_or_text(sequence),
                truncate=side if request.truncate else None,
            )
            for i, sequence in enumerate(sequences)
        ]
        found = await _score(backends, items, model)
        _tell(response, found.scored)
        predictions = [
            [Prediction(score=value if request.raw_scores else probability(value), label=_LABEL)]
            for value in found.values
        ]
        return predictions if is_batch else predictions[0]

    return router


def _tell(response: Response, scored: Scored) -> None:
    """Say in a header what the protocols have no field for: which models, and what was cut off."""
    response.headers[MODELS_HEADER] = ", ".join(
        f"{axis};version={model.version};template_hash={model.template_hash}"
        f";truncated={sum(item.truncated for item in model.items)}"
        for axis, model in scored.models.items()
    )


def _tags(request: GetRewardRequest) -> list[bool]:
    """Which queries are tagged as adversarial."""
    if request.labels is None:
        return [False] * len(request.query)
    if len(request.labels) != len(request.query):
        raise InputError(
            "labels", f"{len(request.labels)} labels", f"{len(request.query)}, one for each query"
        )
    return [label == _ADVERSARIAL for label in request.labels]


def _items(
    backends: Backends, given: str | list[str], add_special_tokens: bool, cut: Cut | None
) -> list[Item]:
    texts = [given] if isinstance(given, str) else given
    require_count(backends, len(texts), "input")
    return [
        Item(
            "input" if isinstance(given, str) else f"input.{i}",
            Written(text, add_special_tokens),
            truncate=cut,
        )
        for i, text in enumerate(texts)
    ]


def _sequences(request: PredictRequest) -> tuple[list[list[str]], bool]:
    """Texts or pairs, and whether the answer is a list for each."""
    inputs = request.inputs
    if isinstance(inputs, str):
        return [[inputs]], False
    sequences = [one for one in inputs if isinstance(one, list)]
    if sequences:
        return sequences, True
    return [[one for one in inputs if isinstance(one, str)]], False


def _pair_or_text(sequence: Sequence[str]) -> Answered | Written:
    if len(sequence) == 1:
        return Written(sequence[0], add_special_tokens=True)
    return Answered((Message("user", sequence[0]),), sequence[1])


async def _score(backends: Backends, items: Sequence[Item], model: str | None) -> _Values:
    name, axes = _meant(backends, model)
    scored = await score_items(backends, items, axes)
    if name == _COMBINED:
        assert scored.mixed is not None
        return _Values(name, scored.mixed.score.tolist(), scored)
    return _Values(name, [item.logit for item in scored.models[axes[0]].items], scored)


def _meant(backends: Backends, model: str | None) -> tuple[str, list[Axis]]:
    """Which score is meant by a name, and whom to ask for it.

    Raises:
        InputError: names `model`; there is no such score.
    """
    axes = list(backends.reward)
    known: dict[str, list[Axis]] = {axis: [axis] for axis in axes}
    if len(axes) == 2:
        known[_COMBINED] = axes
    if model is None:
        name = _COMBINED if _COMBINED in known else axes[0]
        return name, known[name]
    if model in known:
        return model, known[model]
    for axis in axes:
        settings = getattr(backends.settings.reward, axis)
        if model == settings.path:
            return model, [axis]
    raise InputError("model", model[:100], f"one of {sorted(known)}")


def _packed(value: float) -> str:
    return base64.b64encode(struct.pack("<f", value)).decode()
