"""What the gateway and the APIs report about themselves; `server.ops.metrics` counts it."""

from __future__ import annotations

from typing import Protocol

from server.gateway.fair_queue import Priority


class Telemetry(Protocol):
    """Takes observations. Called on the event loop, must not block. Times are in seconds."""

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an HTTP request that was answered; `endpoint` is a route, never a raw path."""
        ...

    def error(self, code: str) -> None:
        """Count an error told to a client, before or within its stream."""
        ...

    def queue_wait(self, seconds: float, priority: Priority) -> None:
        """Tell how long one choice waited for a slot."""
        ...

    def first_token(self, seconds: float) -> None:
        """Tell the time from submission to the first token of one choice."""
        ...

    def token_gap(self, seconds: float, tokens: int) -> None:
        """Tell the time between two wake-ups of one choice that brought tokens."""
        ...

    def usage(self, prompt: int, cached: int, completion: int) -> None:
        """Count the tokens of a finished choice."""
        ...

    def aborted(self) -> None:
        """Count a generation that was closed before its end."""
        ...


class NullTelemetry:
    """Forgets everything."""

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Do nothing."""

    def error(self, code: str) -> None:
        """Do nothing."""

    def queue_wait(self, seconds: float, priority: Priority) -> None:
        """Do nothing."""

    def first_token(self, seconds: float) -> None:
        """Do nothing."""

    def token_gap(self, seconds: float, tokens: int) -> None:
        """Do nothing."""

    def usage(self, prompt: int, cached: int, completion: int) -> None:
        """Do nothing."""

    def aborted(self) -> None:
        """Do nothing."""
