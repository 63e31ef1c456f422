"""The time that a client gives its request."""

from __future__ import annotations

import re

from starlette.requests import Request

from server.core.errors import InvalidRequest

HEADER = "x-request-deadline-ms"
_FORM = re.compile(r"[+-]?[0-9]{1,12}")


def seconds_given(request: Request) -> float | None:
    """Return the seconds from now in which the answer is of use; None: the header is not there.

    Nothing or less is a deadline that has passed. Raises `InvalidRequest` for anything but whole
    milliseconds.
    """
    text = request.headers.get(HEADER)
    if text is None:
        return None
    if _FORM.fullmatch(text) is None:
        raise InvalidRequest(
            f"The header {HEADER} must be a whole number of milliseconds from now, "
            f"not {text[:50]!r}.",
            param=HEADER,
        )
    return int(text) / 1000
