"""Settings of admission to the limits of its parts."""

from __future__ import annotations

from server.api.limits import ApiLimits
from server.gateway.answers import AnswerLimits
from server.gateway.line import LineLimits
from server.gateway.rate_limit import RateLimits
from server.gateway.service import ServiceLimits
from server.settings import Settings
from server.settings.gateway import GatewaySettings, IdempotencySettings


def line_limits(gateway: GatewaySettings) -> LineLimits:
    """Return the bounds of the line."""
    return LineLimits(
        gateway.max_queue,
        interactive_slots=gateway.interactive_slots,
        aging=gateway.aging,
        passing=gateway.passing,
    )


def answer_limits(idempotency: IdempotencySettings) -> AnswerLimits:
    """Return the bounds of what is kept for retries."""
    return AnswerLimits(
        idempotency.grace, idempotency.lifetime, idempotency.max_answers, idempotency.max_size
    )


def service_limits(settings: Settings) -> ServiceLimits:
    """Return what the service grants."""
    gateway = settings.gateway
    return ServiceLimits(
        gateway.timeout.connect,
        gateway.timeout.read,
        gateway.timeout.total,
        rate=default_rates(gateway),
        share_prefixes=gateway.share_prefixes,
        stall_after=settings.engine.stall_after,
    )


def api_limits(settings: Settings) -> ApiLimits:
    """Return bounds and policies of the HTTP side."""
    return ApiLimits(
        max_body=settings.server.max_request_size,
        write_timeout=settings.gateway.timeout.write,
        stream_hold=settings.gateway.stream_hold,
        strict=settings.gateway.strict,
        reasoning_field=settings.gateway.reasoning_field,
    )


def default_rates(gateway: GatewaySettings) -> RateLimits:
    """Return the limits of keys without limits of their own."""
    rate = gateway.rate_limit
    return RateLimits(
        rate.requests_per_minute, rate.burst, rate.tokens_per_minute, rate.max_concurrent
    )
