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
    hosts: Collection[str] = ()
    """Names of this server, in small letters, beside those that every machine has for itself."""

    def admits(self, origin: str, host: str) -> bool:
        """Whether a page from `origin` may send a request that carries no key.

        Pages of this machine and of this very server's address may. A name is not enough: whoever
        owns it decides which address it has, this server's too.
        """
        if origin in self.origins or "*" in self.origins:
            return True
        theirs, ours = _name(origin), _name(f"//{host}")
        if theirs == "localhost" or is_loopback(theirs):
            return True
        return theirs == ours and (_is_ip(theirs) or theirs in self.hosts)

    def answers_to(self, host: str, address: str) -> bool:
        """Whether a request that carries no key, and reached `address`, may call this server `host`.

        On a loopback address only names that nobody else can own will do: a page can give its own
        name the address of this machine, and is then of the same origin, which GETs do not tell.
        """
        if not host or not is_loopback(address):
            return True
        name = _name(f"//{host}")
        local = name == "localhost" or name.endswith(".localhost")
        return local or _is_ip(name) or name in self.hosts


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
        if not principal.anonymous:
            return principal
        if foreign:
            raise HttpError(
                "origin_not_allowed",
                "Web pages from elsewhere may not use this server: without API keys it answers "
                "pages of its own address only. List theirs in server.cors_origins.",
            )
        reached = scope["server"][0] if scope.get("server") else ""
        if not self.rules.answers_to(headers.get("host", ""), reached):
            raise HttpError(
                "host_not_allowed",
                f"This server does not know itself as {headers['host'][:100]!r}: without API keys "
                "it answers to localhost and to addresses only. List the name in server.host_names.",
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


def _name(url: str) -> str:
    """Return the host of `//host:port` or of an origin in small letters; empty for anything else."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    whole = "@" not in parts.netloc and not (parts.path or parts.query or parts.fragment)
    return (parts.hostname or "").rstrip(".") if whole else ""


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
