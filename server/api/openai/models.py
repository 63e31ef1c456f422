"""`GET /v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from server.api.parts import Parts
from server.core.errors import Unavailable


def models_router(parts: Parts) -> APIRouter:
    """Return the endpoints. They answer while the model is loading too."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List what is served."""
        names = parts.service.limits.names
        return {"object": "list", "data": [_card(parts, name) for name in names]}

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """Describe one model."""
        parts.service.resolve(model)
        return _card(parts, model)

    return router


def _card(parts: Parts, name: str) -> dict[str, Any]:
    limits = parts.service.limits
    card: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "onegpu",
        "context_window": limits.n_ctx,
        "max_tokens": limits.default_max_tokens,
    }
    try:
        info, _ = parts.service.model()
    except Unavailable:
        return card
    card["created"] = info.created
    card["meta"] = {
        "architecture": info.architecture,
        "description": info.description,
        "n_params": info.n_params,
        "n_vocab": info.n_vocab,
        "n_ctx_train": info.n_ctx_train,
        "size": info.size_bytes,
    }
    return card
