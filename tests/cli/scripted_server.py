"""A server on a loopback port that answers what a test wrote down, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = tuple[int, Any]
"""Status and JSON, or pieces of a stream as an iterable of bytes."""


def chunk(content: str | None = None, **more: Any) -> bytes:
    """One event of a stream; `finish` is the finish reason, the rest goes into the delta."""
    finish, extra = more.pop("finish", None), more.pop("extra", {})
    delta = more if content is None else {"content": content, **more}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **extra}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def says(*texts: str, finish: str = "stop") -> list[bytes]:
    """A whole answer."""
    return [*(chunk(text) for text in texts), chunk(finish=finish), DONE]


class ScriptedServer:
    """Routes are `METHOD path` → what to answer: once each from a list, or always the same."""

    def __init__(self, **models: Any) -> None:
        """`models`: name → more fields of its card."""
        self.cards: list[dict[str, Any]] = [{"id": name, **card} for name, card in models.items()]
        self.routes: dict[str, Answer | list[Answer] | Callable[[], Answer]] = {
            "GET /v1/models": lambda: (200, {"object": "list", "data": self.cards})
        }
        self.retry_after: str | None = None
        """Sent with every failure."""
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.gone = threading.Event()
        """A client closed its connection before the answer's end."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self, "GET", None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.answer(self, "POST", json.loads(body))

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def chats(self, *answers: Sequence[bytes] | Iterator[bytes] | Answer) -> None:
        """What chat completions are answered, in turn."""
        self.routes["POST /v1/chat/completions"] = [
            answer if isinstance(answer, tuple) else (200, answer) for answer in answers
        ]

    @property
    def bodies(self) -> list[Any]:
        """What chat completions were asked."""
        return [body for path, body in self.asked if path == "POST /v1/chat/completions"]

    def answer(self, handler: BaseHTTPRequestHandler, method: str, body: Any) -> None:
        path = f"{method} {handler.path}"
        self.asked.append((path, body))
        self.headers.append(dict(handler.headers))
        route = self.routes.get(path, (404, {"error": {"message": f"no {path}"}}))
        status, content = route() if callable(route) else self._next(route)
        handler.send_response(status)
        if status >= 400 and self.retry_after is not None:
            handler.send_header("Retry-After", self.retry_after)
        if isinstance(content, dict | list | str) and not _is_stream(content):
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
            return
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        try:
            for piece in content:
                handler.wfile.write(piece)
                handler.wfile.flush()
        except OSError:
            self.gone.set()

    def _next(self, route: Answer | list[Answer]) -> Answer:
        if isinstance(route, list):
            return route.pop(0) if len(route) > 1 else route[0]
        return route


def _is_stream(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and isinstance(content[0], bytes)
