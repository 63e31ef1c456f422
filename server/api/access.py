"""Before every endpoint: whose request this is, and whether a browser may have sent it.

Pure ASGI, as all middleware here. Endpoints ask `principal_of` for what depends on the key.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import HttpError, refuse
from server.api.record import RequestRecord
from server.core.errors import OnegpuError
from server.gateway.failures import is_loopback
from server.gateway.principal import Principal

KEY = "onegpu.principal"
"""Where the ASGI scope carries it."""
HEALTH = frozenset({"/health", "/health/live", "/health/ready"})
METRICS = "/metrics"


class Gatekeeper(Protocol):
    """Tells keys apart."""

    def authenticate(self, presented: str | None, address: str) -> Principal:
        """Return who presented a key from an address, or raise an `OnegpuError`."""
        ...


@dataclass(frozen=True, slots=True)
class AccessRules:
    """What is open to everybody."""

    open_paths: frozenset[str] = HEALTH
    """Answered without a look at keys."""
    origins: Collection[str] = ()
    """Web pages that may ask from a browser; `*`: all."""

    def admits(self, origin: str, host: str) -> bool:
        """Whether a page from `origin` may send a request that carries no key.

        Pages of this machine and of this very server's address may. A name is not enough: whoever
        owns it decides which address it has, this server's too.
        """
        if origin in self.origins or "*" in self.origins:
            return True
        try:
            theirs, ours = urlsplit(origin).hostname or "", urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return theirs == "localhost" or is_loopback(theirs) or (theirs == ours and _is_ip(theirs))


class AccessMiddleware:
    """Puts the principal into the scope, or answers with a refusal."""

    def __init__(self, app: ASGIApp, *, gatekeeper: Gatekeeper, rules: AccessRules) -> None:
        """`app` is the next one inwards."""
        self.app = app
        self.gatekeeper = gatekeeper
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; its record is in the scope already."""
        if scope["type"] == "http" and scope["path"] not in self.rules.open_paths:
            record: RequestRecord = scope["onegpu.record"]
            try:
                principal = self._principal(scope)
            except OnegpuError as error:
                # Answered here, not raised: what is around this adds the headers browsers need.
                refusal = refuse(error)
                record.error = refusal.code
                await refusal.response()(scope, receive, send)
                return
            scope[KEY] = principal
            record.key = principal.key_id
        await self.app(scope, receive, send)

    def _principal(self, scope: Scope) -> Principal:
        headers = Headers(scope=scope)
        address = scope["client"][0] if scope.get("client") else ""
        principal = self.gatekeeper.authenticate(presented_key(headers), address)
        origin = headers.get("origin")
        # A key is proof enough; without one, any page in a browser on this machine could ask.
        foreign = origin is not None and not self.rules.admits(origin, headers.get("host", ""))
        if principal.anonymous and foreign:
            raise HttpError(
                "origin_not_allowed",
                "Web pages from elsewhere may not use this server: without API keys it answers "
                "pages of its own address only. List theirs in server.cors_origins.",
            )
        return principal


def principal_of(request: Request) -> Principal:
    """Return whose request it is."""
    principal = request.scope[KEY]
    if not isinstance(principal, Principal):
        message = f"scope[{KEY!r}] is not a Principal"
        raise TypeError(message)
    return principal


def presented_key(headers: Headers) -> str | None:
    """Return the key in `Authorization: Bearer` or `x-api-key`; None for none.

    Headers that contradict each other, or another scheme, give a text that is no key.
    """
    texts = [_bearer(value) for value in headers.getlist("authorization")]
    texts += [value.strip() for value in headers.getlist("x-api-key")]
    distinct = {text for text in texts if text}
    return " ".join(sorted(distinct)) if distinct else None


def _bearer(value: str) -> str:
    scheme, _, text = value.strip().partition(" ")
    return text.strip() if scheme.lower() == "bearer" else value


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
