"""Answers for a worker that is not there, so that nobody waits without a word."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_HEAD_SECONDS = 5.0
"""How long a request may take to say what it wants."""
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 10_000_000
"""What may still come of a request that was answered: closing before would lose the answer."""
_HEAD_BYTES = 65536
_CONNECTIONS = 128
"""Answered at once; further ones wait in the socket's backlog. A process may have 256 files only."""


class Responder:
    """Accepts on the kept socket while it is entered; what it has accepted, it answers."""

    def __init__(
        self,
        listener: socket.socket,
        why: str,
        left: Callable[[], float],
        origins: Collection[str] = (),
    ) -> None:
        """`why`: a sentence for people. `left`: seconds until there is a worker again.

        `origins`: of web pages that may read what is told; `*`: of all.
        """
        self._listener = listener
        self._why = why
        self._left = left
        self._origins = origins
        self._accepting: socket.socket | None = None
        self.answering: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        # A duplicate: the end may be asked for meanwhile, which closes the other.
        self._accepting = self._listener.dup()
        self._accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Answers are not waited for: connections that linger must not hold up the next worker.
        if self._accepting is not None:
            asyncio.get_running_loop().remove_reader(self._accepting)
            self._accepting.close()
            self._accepting = None

    def _accept(self) -> None:
        """Take who waits, as far as there is room; an answer that is over makes some."""
        if self._accepting is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._accepting)
        while len(self.answering) < _CONNECTIONS:
            try:
                connection, _ = self._accepting.accept()
            except BlockingIOError:
                loop.add_reader(self._accepting, self._accept)
                return
            except ConnectionAbortedError:
                continue
            except OSError:  # no descriptor is left
                return
            task = loop.create_task(self._answer(connection))
            self.answering.add(task)
            task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self.answering.discard(task)
        self._accept()

    async def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, TimeoutError), contextlib.closing(connection):
            reader, writer = await asyncio.open_connection(sock=connection, limit=_HEAD_BYTES)
            try:
                writer.write(self._response(await _asked(reader)))
                await writer.drain()
                writer.write_eof()
                await _linger(reader)
            finally:
                writer.close()
                await writer.wait_closed()

    def _response(self, asked: _Asked) -> bytes:
        headers = self._leave(asked)
        if headers and asked.method == "OPTIONS":  # a browser's question whether it may ask
            wanted = asked.headers.get("access-control-request-headers", "")
            headers["access-control-allow-methods"] = "GET, POST, DELETE"
            headers["access-control-allow-headers"] = wanted
            return _written("204 No Content", headers)
        seconds = max(1, math.ceil(self._left()))
        told = f"{self._why} Try again in {seconds} s."
        if asked.path.startswith("/health"):
            document: object = {"status": "restarting", "message": told}
        else:
            kind = "service_unavailable_error"
            document = {
                "error": {"message": told, "type": kind, "param": None, "code": "engine_dead"}
            }
        status = "200 OK"
        if asked.path != "/health/live":  # a restart, what its failure asks for, is under way
            status, headers["retry-after"] = "503 Service Unavailable", str(seconds)
        body = json.dumps(document, ensure_ascii=False).encode()
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
        return _written(status, headers) + (b"" if asked.method == "HEAD" else body)

    def _leave(self, asked: _Asked) -> dict[str, str]:
        """Return the headers without which a browser keeps the answer from a page it may go to."""
        origin = asked.headers.get("origin", "")
        if "*" not in self._origins and origin not in self._origins:
            return {}
        return {
            "access-control-allow-origin": "*" if "*" in self._origins else origin,
            "access-control-expose-headers": "retry-after",
            "vary": "origin",
        }


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request's head; empty for what is no HTTP."""

    method: str = ""
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def _written(status: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1")


async def _asked(reader: asyncio.StreamReader) -> _Asked:
    try:
        async with asyncio.timeout(_HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        return _Asked()
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3:
        return _Asked()
    pairs = [line.partition(":") for line in lines if line.isprintable()]
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return _Asked(parts[0], parts[1].partition("?")[0], headers)


async def _linger(reader: asyncio.StreamReader) -> None:
    """Take what the client still sends, within bounds."""
    taken = 0
    async with asyncio.timeout(_LINGER_SECONDS):
        while taken < _LINGER_BYTES and (data := await reader.read(65536)):
            taken += len(data)
