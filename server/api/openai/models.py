"""`GET /v1/models` and `/v1/models/{id}`, and `/models/load` and `/models/unload`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from server.api.access import principal_of
from server.api.body import read_model
from server.api.parts import Parts
from server.api.schemas.system import ModelRequest
from server.api.strict import ignored
from server.core.errors import Unavailable
from server.gateway.aliases import Alias
from server.gateway.host import Host
from server.gateway.host_troubles import dead
from server.gateway.remote.model import UNKNOWN, Distant
from server.gateway.routing import Served, Target


def models_router(parts: Parts) -> APIRouter:
    """Return the endpoints. Those that list answer whatever is loaded."""
    router = APIRouter()
    pause = parts.limits.write_timeout

    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """List what is served, as far as the key may use it."""
        router, principal = parts.service.router, principal_of(request)
        served = router.usable(principal)
        cards = [_card(parts, one, name) for one in served for name in one.agent.names]
        cards += [remote_card(one) for one in router.remotes(principal)]
        cards += [_alias_card(parts, *found) for found in router.aliases(principal)]
        return {"object": "list", "data": cards}

    @router.get("/v1/models/{model:path}")
    async def model(model: str, request: Request) -> dict[str, Any]:
        """Describe one model."""
        router, principal = parts.service.router, principal_of(request)
        for alias, targets in router.aliases(principal):
            if alias.name == model:
                return _alias_card(parts, alias, targets)
        return _target_card(parts, router.find(model, principal), model)

    @router.post("/models/load")
    async def load(request: Request, response: Response) -> dict[str, Any]:
        """Load a model as soon as there is room; its card tells how far it is."""
        principal_of(request).require_admin()
        body = await read_model(request, ModelRequest, pause)
        response.headers.update(ignored(request, parts.limits, body))
        served = parts.service.router.pick(body.model)
        parts.service.hosts.begin_load(served.host)
        return _told(served)

    @router.post("/models/unload")
    async def unload(request: Request, response: Response) -> dict[str, Any]:
        """Unload a model once its last answer is complete; its card tells when it is gone."""
        principal_of(request).require_admin()
        body = await read_model(request, ModelRequest, pause)
        response.headers.update(ignored(request, parts.limits, body))
        served = parts.service.router.pick(body.model)
        parts.service.hosts.begin_unload(served.host)
        return _told(served)

    return router


def _told(served: Served) -> dict[str, Any]:
    return {"success": True, "model": served.agent.name, "state": state(served.host)}


def state(host: Host) -> str:
    """The host's state; a loaded model whose engine died has failed."""
    return "failed" if dead(host) is not None else host.state.value


def _card(parts: Parts, served: Served, name: str) -> dict[str, Any]:
    agent, host = served.agent, served.host
    error = dead(host) or host.error
    card: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "onegpu",
        "state": state(host),
        "load_progress": round(host.progress(), 3),
        "context_window": agent.n_ctx,
        "max_tokens": min(agent.default_max_tokens, agent.n_ctx),
        "slots": host.spec.slots,
        "memory": {"gpu": host.spec.footprint.gpu, "cpu": host.spec.footprint.cpu},
        "weights": host.spec.name,
        "expires_at": _expires_at(parts, host),
        "error": None if error is None else error.message,
    }
    if agent.description:
        card["description"] = agent.description
    if not host.loaded or host.engine is None:
        return card
    try:
        info, _ = host.engine.model
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


def _target_card(parts: Parts, target: Target, name: str) -> dict[str, Any]:
    if isinstance(target, Distant):
        return {**remote_card(target), "id": name}
    return _card(parts, target, name)


def remote_card(distant: Distant) -> dict[str, Any]:
    """Describe a model on another server; where that is, and what it is called there, is not told."""
    agent, remote = distant.agent, distant.remote
    failure = remote.failure()
    return {
        "id": agent.name,
        "object": "model",
        "created": 0,
        "owned_by": "remote",
        "state": "ready" if failure is None else "failed",
        "context_window": agent.n_ctx if agent.n_ctx < UNKNOWN else None,
        "max_tokens": remote.limits.max_tokens,
        "slots": remote.lane.slots,
        "error": None if failure is None else failure.message,
    }


def _alias_card(parts: Parts, alias: Alias, targets: Sequence[Target]) -> dict[str, Any]:
    """Describe an alias by its first target, and by the least context that a request may meet."""
    card = _target_card(parts, targets[0], alias.name)
    least = min(one.agent.n_ctx for one in targets)
    card["context_window"] = least if least < UNKNOWN else None
    weights = dict(alias.targets)
    card["alias_of"] = {
        name: weights[name] for one in targets for name in one.agent.names if name in weights
    }
    return card


def _expires_at(parts: Parts, host: Host) -> int | None:
    """Unix seconds at which the model is unloaded if nobody asks it anything."""
    expires = host.expires()
    if expires is None:
        return None
    return round(parts.clock.wall() + expires - parts.clock.monotonic())
