"""Before the endpoints that generate: who would be refused whatever they ask is refused at once.

Under a flood most requests are refused. One that is neither parsed, checked nor routed costs a
fraction, so that the flood takes little from those that are served.

Pure ASGI, as all middleware here. The principal and the record are in the scope already.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.access import KEY as PRINCIPAL
from server.api.errors import refuse
from server.api.keyed import HEADER
from server.api.record import KEY as RECORD
from server.api.record import RequestRecord
from server.core.errors import OnegpuError
from server.gateway.answers import AnswerKeeper
from server.gateway.service import GenerationService

GENERATING = frozenset({"/v1/chat/completions", "/v1/completions"})
_MOST_READ = 65536
"""Bytes of a body that are read for nothing. While a larger one comes, the line may move."""


class TurnstileMiddleware:
    """Answers for the line and for the key's limits where the body makes no difference."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: GenerationService,
        answers: AnswerKeeper[Any],
        pause: float,
    ) -> None:
        """`app` is the next one inwards; `pause`: how long a body may stop coming, in seconds."""
        self.app = app
        self.service = service
        self.answers = answers
        self.pause = pause

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if not _generates(scope) or not _is_small(scope) or self._replays(scope):
            await self.app(scope, receive, send)
            return
        principal = scope[PRINCIPAL]
        try:
            self.service.turn_away(principal)
        except OnegpuError as error:
            refusal = refuse(error)
        else:
            await self.app(scope, receive, send)
            return
        record: RequestRecord = scope[RECORD]
        record.endpoint, record.error = scope["path"], refusal.code
        record.windows = functools.partial(self.service.windows, principal)
        await self._read(receive)
        await refusal.response()(scope, receive, send)

    def _replays(self, scope: Scope) -> bool:
        """Whether it may be a retry, which asks for no place and counts as no request."""
        key = Headers(scope=scope).get(HEADER)
        return key is not None and self.answers.has(scope[PRINCIPAL].key_id, key)

    async def _read(self, receive: Receive) -> None:
        """Take the body, if it comes: to close while some is unread resets the connection."""
        try:
            async with asyncio.timeout(self.pause):
                while (await receive()).get("more_body", False):
                    pass
        except TimeoutError:
            pass


def _generates(scope: Scope) -> bool:
    return (
        scope["type"] == "http" and scope["path"] in GENERATING and bool(scope["method"] == "POST")
    )


def _is_small(scope: Scope) -> bool:
    length = Headers(scope=scope).get("content-length", "")
    return length.isdecimal() and len(length) < 10 and int(length) <= _MOST_READ
