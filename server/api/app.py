"""The application: routers, middleware and error handlers put together."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send, StatelessLifespan

from server.api.access import AccessMiddleware
from server.api.errors import HttpError, refuse
from server.api.middleware import RequestMiddleware
from server.api.openai.chat import chat_router
from server.api.openai.completions import completions_router
from server.api.openai.models import models_router
from server.api.parts import Parts
from server.api.record import record_of
from server.api.system import system_router
from server.api.turnstile import TurnstileMiddleware
from server.core.errors import OnegpuError


def create_app(parts: Parts, lifespan: StatelessLifespan[FastAPI] | None = None) -> FastAPI:
    """Return the ASGI application. It starts and stops nothing by itself; `lifespan` may."""
    app = _App(parts, lifespan)
    for router in (chat_router, completions_router, models_router, system_router):
        app.include_router(router(parts))
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(OnegpuError, _own_error)
    app.add_exception_handler(Exception, _own_error)
    app.add_exception_handler(HTTPException, _framework_error)
    return app


_EXPOSED = (
    "x-request-id",
    "retry-after",
    "openai-processing-ms",
    "x-fallback-model",
    "x-fallback-reason",
    "x-ignored-fields",
    "x-onegpu-dropped-turns",
    "idempotency-replayed",
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
)
"""Headers that web pages of listed origins may read."""


Application = ASGIApp
"""What ASGI servers call."""


class Entry:
    """What a server calls: the application in force. Requests under way keep the one they came to."""

    def __init__(self, app: Application) -> None:
        """`app`: until `current` is another one."""
        self.current = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        await self.current(scope, receive, send)


class _App(FastAPI):
    """Puts the request middleware outermost, where it sees the server's own `send`."""

    def __init__(self, parts: Parts, lifespan: StatelessLifespan[FastAPI] | None) -> None:
        super().__init__(
            title="onegpu",
            version=parts.version,
            lifespan=lifespan,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        self._parts = parts

    def build_middleware_stack(self) -> ASGIApp:
        parts = self._parts
        app: ASGIApp = TurnstileMiddleware(
            super().build_middleware_stack(),
            service=parts.service,
            answers=parts.answers,
            pause=parts.limits.write_timeout,
        )
        app = AccessMiddleware(app, gatekeeper=parts.gatekeeper, rules=parts.rules)
        if parts.rules.origins:
            # Outside of the keys: a browser's question whether it may ask carries none.
            app = CORSMiddleware(
                app,
                allow_origins=tuple(parts.rules.origins),
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("*",),
                expose_headers=_EXPOSED,
            )
        return RequestMiddleware(
            app,
            limits=parts.limits,
            reporter=parts.reporter,
        )


async def _gone(_request: Request, _error: Exception) -> Response:
    """Nobody reads this; the status is for the log, as others use it."""
    return Response(status_code=499)


async def _own_error(request: Request, error: Exception) -> Response:
    record = record_of(request)
    refusal = refuse(error, started=record.started)
    record.error = refusal.code
    return refusal.response()


async def _framework_error(request: Request, error: Exception) -> Response:
    """Put unknown paths and methods into the one form that errors have."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    where = f"{request.method} {request.url.path[:200]}"
    if status == 405:
        allow = (getattr(error, "headers", None) or {}).get("Allow")
        told = HttpError("method_not_allowed", f"{where}: the method is not allowed.", allow=allow)
    elif status == 404:
        told = HttpError("not_found", f"{where}: there is no such path.")
    else:
        told = HttpError("invalid_request", f"{where}: {getattr(error, 'detail', error)}")
    return await _own_error(request, told)
