"""Settings of admission to the limits of its parts."""

from __future__ import annotations

from server.gateway.line import LineLimits
from server.gateway.rate_limit import RateLimits
from server.settings.gateway import GatewaySettings


def line_limits(gateway: GatewaySettings) -> LineLimits:
    """Return the bounds of the line."""
    return LineLimits(
        gateway.max_queue, interactive_slots=gateway.interactive_slots, aging=gateway.aging
    )


def default_rates(gateway: GatewaySettings) -> RateLimits:
    """Return the limits of keys without limits of their own."""
    rate = gateway.rate_limit
    return RateLimits(
        rate.requests_per_minute, rate.burst, rate.tokens_per_minute, rate.max_concurrent
    )
