"""What a key's limits mean for the rate limiter and the line; what work is taken to cost."""

from __future__ import annotations

from server.gateway.fair_queue import Priority
from server.gateway.principal import Principal
from server.gateway.rate_limit import RateLimits
from server.gateway.ticket import Standing

_PROMPT_COST = 0.25
"""A prompt token's cost in generated tokens; measured with a 0.6B model on a CPU, about 400 prompt
tokens take the time of 90 generated ones over four slots."""

_CLASSES = {
    "interactive": Priority.INTERACTIVE,
    "normal": Priority.NORMAL,
    "batch": Priority.BATCH,
}


def rate_limits(principal: Principal, default: RateLimits) -> RateLimits:
    """Return the limits in force: the key's own; where it has none the default; 0 lifts one."""
    own = principal.limits
    rpm = default.requests_per_minute if own.rpm is None else own.rpm
    tpm = default.tokens_per_minute if own.tpm is None else own.tpm
    most = default.max_concurrent if own.max_concurrent is None else own.max_concurrent
    # A key with a rate of its own has a burst of its own: a minute's, unless it says otherwise.
    burst = default.burst if own.burst is None and own.rpm is None else own.burst
    return RateLimits(rpm or None, burst or None, tpm or None, most or None)


def standing(principal: Principal) -> Standing:
    """Return as whom its requests wait."""
    own = principal.limits
    return Standing(principal.key_id, _CLASSES[own.priority or "normal"], own.weight)


def cost(prompt: int, output: int) -> float:
    """Service of so many computed prompt tokens and generated tokens."""
    return prompt * _PROMPT_COST + output
