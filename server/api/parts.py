"""What endpoints are given to work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.api.access import AccessRules, Gatekeeper
from server.api.limits import ApiLimits
from server.api.report import Reporter
from server.core.clock import Clock
from server.gateway.answers import AnswerKeeper
from server.gateway.fallback import Fallback
from server.gateway.health import Health
from server.gateway.service import GenerationService

RenderMetrics = Callable[[], tuple[bytes, str]]
"""Returns the metrics' text and its content type."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Handed from `create_app` to every router."""

    service: GenerationService
    fallback: Fallback
    health: Health
    answers: AnswerKeeper[Any]
    """Of requests with an idempotency key; `server.api.keyed` says what heads they have."""
    reporter: Reporter
    render_metrics: RenderMetrics
    gatekeeper: Gatekeeper
    rules: AccessRules
    limits: ApiLimits
    clock: Clock
    version: str
