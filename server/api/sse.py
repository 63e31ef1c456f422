"""Event streams: one response owns one generation and closes it, however the stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping

import anyio
from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from server.api.disconnect import unless_disconnected
from server.core.errors import ClientStalled


class EventStream(EventSourceResponse):
    """sse-starlette's headers and framing, without its cost per stream and per event.

    - Events come encoded, so nothing is formatted, and one timer watches all sends.
    - Keep-alives are the body's own comments (they tell the place in the line): no ping task.
    - One task beside the stream's, where there were four: it waits for the client to go.
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
        self.told = dict(headers or {})
        """The headers that are this answer's own."""
        self._body = body
        self._close = close
        self._patience = send_timeout
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, as long as the client is there; returns or raises only after `close`."""
        del scope
        try:
            with anyio.CancelScope() as sending:
                watch = _ReaderWatch(self, sending)
                try:
                    await unless_disconnected(receive, self._stream_response(send))
                except ClientDisconnect:
                    return
                finally:
                    watch.stop()
            if watch.stalled:
                raise ClientStalled(
                    f"The client read nothing of its answer for {self._patience:g} s."
                )
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

    def stalled_at(self) -> float | None:
        """Time at which the send under way will have waited for too long; None where none is."""
        since = self._sending_since
        return None if since is None else since + self._patience

    @property
    def patience(self) -> float:
        """Longest time of one send, in seconds."""
        return self._patience

    async def _stream_response(self, send: Send) -> None:
        time = asyncio.get_running_loop().time
        start = {"status": self.status_code, "headers": self.raw_headers}
        try:
            await send({"type": "http.response.start", **start})
            async for chunk in self._body:
                self._sending_since = time()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._sending_since = None
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._body.aclose()


class _ReaderWatch:
    """Cancels a stream when one send has been waiting for the client for too long."""

    def __init__(self, stream: EventStream, sending: anyio.CancelScope) -> None:
        """Look for the first time after the stream's patience."""
        self.stalled = False
        self._stream = stream
        self._sending = sending
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(stream.patience, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        now, due = self._loop.time(), self._stream.stalled_at()
        if due is not None and due <= now:
            self.stalled = True
            self._sending.cancel()
        else:
            self._timer = self._loop.call_at(due or now + self._stream.patience, self._look)
