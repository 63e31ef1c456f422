"""Bounds and policies of the HTTP side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ReasoningField = Literal["reasoning_content", "reasoning", "both"]


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """Times are in seconds."""

    max_body: int = 10 * 1024 * 1024
    """Largest request body in bytes."""
    write_timeout: float = 120.0
    """Longest pause of a client that sends its body or should read its answer."""
    stream_hold: float = 5.0
    """How long a stream's HTTP status waits for the first token."""
    comment_every: float = 5.0
    """Pause after which a silent stream gets a comment, so that nobody takes it for dead."""
    strict: bool = False
    """Refuse unknown fields instead of naming them in `x-ignored-fields`."""
    reasoning_field: ReasoningField = "reasoning_content"
    """The field of messages and deltas that thoughts go to."""
