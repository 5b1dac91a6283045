"""What is served, as OpenAI's clients list models."""

import time
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from rayward.services.http.backends import Backends
from rayward.services.http.errors import ApiError, documented
from rayward.services.policy.schemas import POLICY


class Model(BaseModel):
    """A model that is served."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str
    """What requests call it."""
    object: Literal["model"] = "model"
    """Always `model`."""
    created: int
    """When the service started, in seconds since 1970."""
    owned_by: str = "rayward"
    """Always `rayward`."""


class ModelList(BaseModel):
    """The models that are served."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    """Always `list`."""
    data: list[Model]
    """All of them."""


def models_routes(backends: Backends) -> APIRouter:
    """The list of models, and each by its id; for every key, whatever it may do."""
    router = APIRouter(tags=["models"])
    ids = [*([] if backends.policy is None else [POLICY]), *backends.reward]
    models = {id: Model(id=id, created=int(time.time())) for id in ids}
    listed = ModelList(data=list(models.values()))

    @router.get("/v1/models", responses=documented(401, 403, 429, 503))
    async def list_models() -> ModelList:
        """The models that are served."""
        return listed

    @router.get("/v1/models/{id}", responses=documented(401, 403, 404, 429, 503))
    async def get_model(id: str) -> Model:
        """One model."""
        if id not in models:
            raise ApiError(404, "no model of this id is served", "id", "model_not_found")
        return models[id]

    return router
