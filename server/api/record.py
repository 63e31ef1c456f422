"""What is known of one HTTP request: made by the middleware, filled in on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from server.gateway.fallback import AnyGeneration
from server.gateway.rate_limit import Window

KEY = "onegpu.record"
"""Where the ASGI scope carries it."""


@dataclass(slots=True)
class RequestRecord:
    """Facts for headers, the access log and the metrics."""

    request_id: str
    begun: float
    """Monotonic seconds."""
    endpoint: str = ""
    """The route's path, where the request did not come as far as the routes."""
    key: str = ""
    """Public id of the API key that it came with."""
    fingerprint: bytes = b""
    """Of its path and body; empty until the body was read."""
    status: int = 0
    error: str | None = None
    """Code of the error that the client was told, in the answer or in its stream."""
    windows: Callable[[], dict[str, Window]] | None = None
    """What is left of the key's limits; None where they do not matter."""
    replayed: bool = False
    """Answered by what another request's work has made, or makes."""
    generations: list[AnyGeneration] = field(default_factory=list)

    @property
    def started(self) -> bool:
        """Whether the engine has worked on it."""
        return any(generation.started for generation in self.generations)


def record_of(request: Request) -> RequestRecord:
    """Return the record of a request."""
    record = request.scope[KEY]
    if not isinstance(record, RequestRecord):
        message = f"scope[{KEY!r}] is not a RequestRecord"
        raise TypeError(message)
    return record
