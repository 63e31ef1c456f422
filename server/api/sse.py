"""Event streams: one response owns one generation and closes it, however the stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping

import anyio
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from server.core.errors import ClientStalled


class EventStream(EventSourceResponse):
    """sse-starlette's protocol handling without its cost per event.

    - Events come encoded, so nothing is formatted, and one watchdog replaces a timer per send.
    - Keep-alives are the body's own comments (they tell the place in the line): no ping task.
    - SIGTERM does not cut streams. They end when the server drains: the gateway then ends
      generations that outlive the grace period, and each stream closes with a proper event.
    """

    def __init__(
        self,
        body: AsyncGenerator[bytes, None],
        close: Callable[[], None],
        *,
        send_timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`close` is called once the response ends, even if `body` was never started.

        A client that reads nothing for `send_timeout` seconds raises `ClientStalled`.
        """
        super().__init__(body, headers=headers, ping=0, sep="\n", send_timeout=send_timeout)
        self.data_sender_callable = self._watch_reader
        self.told = dict(headers or {})
        """The headers that are this answer's own."""
        self._body = body
        self._close = close
        self._patience = send_timeout
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; returns or raises only after `close`."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()

    async def divert(self, write: Callable[[bytes], None]) -> None:
        """Give the body to `write` instead of sending it. Returns or raises only after `close`."""
        try:
            async for chunk in self._body:
                write(chunk)
        finally:
            await self._body.aclose()
            self._close()

    async def _stream_response(self, send: Send) -> None:
        time = asyncio.get_running_loop().time
        start = {"status": self.status_code, "headers": self.raw_headers}
        try:
            await send({"type": "http.response.start", **start})
            async for chunk in self._body:
                self._sending_since = time()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._sending_since = None
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._body.aclose()

    async def _watch_reader(self) -> None:
        """Raise when one send has been waiting for the client for too long."""
        time = asyncio.get_running_loop().time
        while True:
            since = self._sending_since
            wait = self._patience if since is None else since + self._patience - time()
            # Negative when a busy loop woke this late; anyio would raise.
            await anyio.sleep(max(0.0, wait))
            if since is not None and since == self._sending_since:
                raise ClientStalled(
                    f"The client read nothing of its answer for {self._patience:g} s."
                )

    @staticmethod
    async def _listen_for_exit_signal() -> None:
        await anyio.sleep_forever()

    async def _listen_for_exit_signal_with_grace(self) -> None:
        await anyio.sleep_forever()
