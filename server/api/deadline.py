"""The time that a client gives its request."""

from __future__ import annotations

import re

from starlette.requests import Request

from server.api.record import record_of
from server.core.clock import Clock
from server.core.errors import InvalidRequest

HEADER = "x-request-deadline-ms"
_FORM = re.compile(r"[+-]?[0-9]{1,12}")


def seconds_given(request: Request, clock: Clock) -> float | None:
    """Return the seconds from now in which the answer is of use; None: the header is not there.

    The client counts from its request's beginning: a body that comes slowly takes of its time.
    Nothing or less is a deadline that has passed. Raises `InvalidRequest` for anything but whole
    milliseconds.
    """
    texts = set(request.headers.getlist(HEADER))
    if not texts:
        return None
    text = texts.pop() if len(texts) == 1 else ", ".join(sorted(texts))
    if _FORM.fullmatch(text) is None:
        raise InvalidRequest(
            f"The header {HEADER} must be a whole number of milliseconds from now, "
            f"not {text[:50]!r}.",
            param=HEADER,
        )
    return int(text) / 1000 - (clock.monotonic() - record_of(request).begun)
