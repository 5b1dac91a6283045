"""`POST /v1/score`: what the reward models say of conversations."""

from typing import cast

from fastapi import APIRouter, Depends

from rayward.cluster.logits import probability
from rayward.services.http.access import needs
from rayward.services.http.backends import Backends
from rayward.services.http.errors import documented
from rayward.services.rewards.schemas import (
    DecidedBy,
    ItemResult,
    ModelScore,
    ModelVersion,
    ScoreRequest,
    ScoreResponse,
)
from rayward.services.rewards.scoring import Scored, require_count, score_items, served_axes


def reward_routes(backends: Backends) -> APIRouter:
    """The route of Rayward's own scoring API."""
    settings = backends.settings.reward
    assert settings is not None
    router = APIRouter(tags=["reward"])

    @router.post(
        "/v1/score",
        dependencies=[Depends(needs("score"))],
        responses=documented(401, 403, 413, 422, 429, 503),
    )
    async def score(request: ScoreRequest) -> ScoreResponse:
        """Score conversations: each model's logit, the mixed reward, and the safety gate."""
        require_count(backends, len(request.items), "items")
        axes = served_axes(backends, request.models)
        truncate = request.truncate or None
        items = [item.item(f"items.{i}", truncate) for i, item in enumerate(request.items)]
        scored = await score_items(backends, items, axes, bool(request.deterministic))
        return ScoreResponse(
            results=[_result(scored, index) for index in range(len(items))],
            models={
                axis: ModelVersion(version=model.version, template_hash=model.template_hash)
                for axis, model in scored.models.items()
            },
            mix=settings.mix.name,
            safety_gate=settings.gate,
        )

    return router


def _result(scored: Scored, index: int) -> ItemResult:
    mixed = scored.mixed
    scores = {axis: model.items[index] for axis, model in scored.models.items()}
    return ItemResult(
        scores={
            axis: ModelScore(
                logit=one.logit,
                probability=probability(one.logit),
                tokens=one.tokens,
                truncated=one.truncated,
            )
            for axis, one in scores.items()
        },
        reward=None if mixed is None else float(mixed.score[index]),
        decided_by=None if mixed is None else cast(DecidedBy, mixed.decided_by[index]),
        under_safety_gate=None if scored.under_gate is None else scored.under_gate[index],
    )
