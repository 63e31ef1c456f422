"""Whether fields without effect are refused: the setting, or what the request says."""

from __future__ import annotations

from starlette.requests import Request

from server.api.body import ignored_header
from server.api.limits import ApiLimits
from server.api.schemas.base import ApiModel
from server.core.errors import InvalidRequest

HEADER = "x-onegpu-strict"
_VALUES = {"true": True, "false": False}


def is_strict(request: Request, limits: ApiLimits) -> bool:
    """Return it for one request. Raises `InvalidRequest` for anything but `true` and `false`."""
    texts = {text.strip().lower() for text in request.headers.getlist(HEADER)}
    if not texts:
        return limits.strict
    text = ", ".join(sorted(texts))
    if text not in _VALUES:
        raise InvalidRequest(
            f"The header {HEADER} must be 'true' or 'false', not {text[:50]!r}.", param=HEADER
        )
    return _VALUES[text]


def ignored(request: Request, limits: ApiLimits, body: ApiModel) -> dict[str, str]:
    """Return the header that names unknown fields. Raises `InvalidRequest` for the first in strict mode."""
    names = body.unknown()
    if is_strict(request, limits) and names:
        raise InvalidRequest(f"Unknown field {names[0][:100]!r}.", param=names[0])
    return ignored_header(names)
