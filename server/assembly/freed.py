"""Memory of the cards after a process died on them: the driver takes it back a moment later.

Who plans before that plans for less than there is, and stays at it: fewer layers on the GPU, say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from server.core.clock import Clock
from server.ops.gpu import Card
from server.supervisor.page import Page

log = logging.getLogger(__name__)

_SLACK = 64 << 20
"""Bytes that may be missing."""
_POLL = 0.1
_STILL = 1.0
"""Seconds without more memory after which somebody else has what is missing."""
_LONGEST = 10.0


def cards_to_plan_for(
    page: Page | None,
    read: Callable[[], list[Card]],
    clock: Clock,
    pause: Callable[[float], None] = time.sleep,
) -> list[Card]:
    """Return the cards, once those free again what a worker before this one had; note it for the next.

    Blocks: for the event loop it is too early. `page`: shared with the supervisor, if there is one.
    """
    cards = read()
    if page is None or not cards:
        return cards
    wanted = page.gpu_free - _SLACK
    begin = grown = clock.monotonic()
    while _free(cards) < wanted and clock.monotonic() - begin < _LONGEST:
        pause(_POLL)
        before, cards = _free(cards), read()
        if _free(cards) > before:
            grown = clock.monotonic()
        elif clock.monotonic() - grown >= _STILL:
            break
    waited = clock.monotonic() - begin
    if waited:
        log.info("Waited %.1f s for the memory of the last server process", waited)
    page.gpu_free = _free(cards)
    return cards


def _free(cards: Sequence[Card]) -> int:
    return sum(card.free for card in cards)
