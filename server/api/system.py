"""Everything that is not OpenAI's: tokens, templates, facts, health, metrics."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.access import principal_of
from server.api.body import ignored_header, read_model
from server.api.disconnect import unless_disconnected
from server.api.parts import Parts
from server.api.schemas.chat import ChatFields
from server.api.schemas.system import DetokenizeRequest, TokenizeRequest
from server.api.strict import ignored, is_strict
from server.core.errors import ModelLoading
from server.engine.interface import Tokenizer
from server.gateway.encoding import compose
from server.gateway.health import Verdict
from server.gateway.host import HostState
from server.gateway.host_troubles import dead
from server.gateway.routing import Served
from server.gateway.spec import ChatPrompt
from server.gateway.steering import template_kwargs


def system_router(parts: Parts) -> APIRouter:
    """Return the endpoints."""
    router = APIRouter()
    router.include_router(_tools_router(parts))

    @router.get("/props")
    async def props(request: Request, model: str | None = None) -> dict[str, Any]:
        """Facts about a loaded model and its defaults."""
        return _props(parts, parts.service.router.pick(model, principal_of(request)))

    @router.get("/slots")
    async def slots(request: Request, model: str | None = None) -> list[dict[str, Any]]:
        """One entry per slot of a model; none while it is not loaded. Tells of others' requests."""
        principal = principal_of(request)
        if not principal.anonymous:
            principal.require_admin()
        host = parts.service.router.pick(model).host
        return [
            {"id": view.index, "is_processing": view.running, **asdict(view)}
            for view in host.slot_views()
        ]

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> Response:
        """Sum up; fails like `/health/ready`."""
        told = {**_summary(parts), "gpu_guard": parts.health.gpu()}
        return _verdict(parts.health.ready(), told)

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> Response:
        """Fail when only a restart helps."""
        return _verdict(parts.health.live(), {})

    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health/ready")
    async def ready() -> Response:
        """Fail while requests would be refused."""
        progress = _summary(parts)["load_progress"]
        return _verdict(parts.health.ready(), {"load_progress": progress})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        content, kind = parts.render_metrics()
        return Response(content, headers={"content-type": kind})

    return router


def _tools_router(parts: Parts) -> APIRouter:
    router = APIRouter()
    pause = parts.limits.write_timeout

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        """Text to token ids."""
        body = await read_model(request, TokenizeRequest, pause)
        headers = ignored(request, parts.limits, body)

        async def work() -> Response:
            async with parts.service.using(body.model, principal_of(request)) as (_, lease):
                return await parts.service.aside(_tokenized, lease.tokenizer, body, headers)

        return await unless_disconnected(request.receive, work())

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        """Token ids to text."""
        body = await read_model(request, DetokenizeRequest, pause)
        headers = ignored(request, parts.limits, body)

        async def work() -> bytes:
            async with parts.service.using(body.model, principal_of(request)) as (_, lease):
                decode = lease.tokenizer.decode
                return await parts.service.aside(decode, body.tokens, special=True)

        content = await unless_disconnected(request.receive, work())
        return _json({"content": content.decode("utf-8", "replace")}, headers)

    @router.post("/apply-template")
    async def apply_template(request: Request) -> Response:
        """Messages to the prompt's text."""
        body = await read_model(request, ChatFields, pause)
        prompt = body.prompt()
        strict = is_strict(request, parts.limits)
        headers = ignored_header(body.leftover(strict=strict))

        async def work() -> str:
            async with parts.service.using(body.model, principal_of(request)) as (served, _):
                return await parts.service.aside(_rendered, served, prompt, strict=strict)

        text = await unless_disconnected(request.receive, work())
        return _json({"prompt": text}, headers)

    return router


def _rendered(served: Served, prompt: ChatPrompt, *, strict: bool) -> str:
    """Answer `/apply-template`: the prompt as a chat completion has it. For a worker thread."""
    template = served.prompter.template
    kwargs = template_kwargs(prompt, template, strict=strict)
    whole = compose(served, replace(prompt, template_kwargs=kwargs))
    return template.render(whole.messages, whole.tools, whole.template_kwargs)


def _tokenized(tokenizer: Tokenizer, body: TokenizeRequest, headers: dict[str, str]) -> Response:
    """Answer `/tokenize`. For a worker thread: a body of millions of tokens takes seconds."""
    tokens = tokenizer.encode(
        body.content,
        add_special=bool(body.add_special),
        parse_special=body.parse_special is not False,
    )
    listed: list[Any] = tokens
    if body.with_pieces:
        pieces = [tokenizer.decode([token], special=True) for token in tokens]
        shown = zip(tokens, map(_piece, pieces), strict=True)
        listed = [{"id": token, "piece": piece} for token, piece in shown]
    return _json({"tokens": listed}, headers)


def _summary(parts: Parts) -> dict[str, Any]:
    """Sum up all models; state and progress are the first one's, which start-up waits for."""
    hosts = parts.service.hosts.hosts
    first = parts.service.router.default.host
    known = [status for host in hosts if (status := host.status()) is not None]
    own = first.status()
    return {
        "state": first.state.value if own is None else own.state.value,
        "load_progress": round(0.0 if own is None else own.load_progress, 3),
        "slots": sum(status.slots for status in known),
        "slots_running": sum(status.running for status in known),
        "requests_waiting": sum(host.lane.queued for host in hosts),
        "models_loaded": sum(host.state is HostState.READY for host in hosts),
        "models_failed": [
            host.spec.name for host in hosts if host.state is HostState.FAILED or dead(host)
        ],
    }


def _props(parts: Parts, served: Served) -> dict[str, Any]:
    """Facts about a loaded model. Raises `Unavailable` rather than load one for this."""
    agent, host = served.agent, served.host
    if host.state is HostState.LOADING:
        raise parts.service.hosts.loading(host)
    if host.engine is None or host.state is not HostState.READY:
        raise ModelLoading(
            f"The model {agent.name!r} is not loaded ({host.state.value}). Ask it something, or "
            "POST /models/load, and look again."
        )
    info, tokenizer = host.engine.model
    return {
        "model_alias": agent.name,
        "model_path": info.path,
        "model": {
            "architecture": info.architecture,
            "description": info.description,
            "size": info.size_bytes,
            "n_params": info.n_params,
            "n_vocab": info.n_vocab,
            "n_ctx_train": info.n_ctx_train,
            "fingerprint": info.fingerprint,
        },
        "default_generation_settings": {
            "n_ctx": agent.n_ctx,
            "max_tokens": agent.default_max_tokens,
        },
        "total_slots": host.spec.slots,
        "kv_cells": host.spec.kv_cells,
        "chat_template": served.prompter.template.source,
        "bos_token": tokenizer.bos_text,
        "eos_token": tokenizer.eos_text,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"onegpu {parts.version}",
    }


def _verdict(verdict: Verdict, more: dict[str, Any]) -> Response:
    told = {"status": verdict.status, "message": verdict.message, **more}
    return _json(told, {}, 200 if verdict.ok else 503)


def _json(content: Any, headers: dict[str, str], status: int = 200) -> Response:
    body = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, headers, media_type="application/json")


def _piece(piece: bytes) -> str | list[int]:
    """Return a string, or bytes where the piece is a part of a character, as llama-server does."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
