"""The server's HTTP API for the command line, over the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from server.cli.chat.sse import Comment, events
from server.cli.chat.url import check_key, parse_url
from server.core.errors import OnegpuError

_ANSWER_SECONDS = 10.0
"""Longest wait for an answer that needs no model."""
_STREAM_SECONDS = 900.0
"""Longest silence of a stream; the server sends comments every few seconds while it works."""


class ServerError(OnegpuError):
    """The server refused, failed, or is not there. `status` is 0 where there was no answer."""

    code = "server_error"

    def __init__(
        self, message: str, *, status: int = 0, code: str | None = None, retry_after: float = 1.0
    ) -> None:
        """`retry_after`: seconds after which to ask again, where that may help."""
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.code = code or self.code


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk of a stream brings."""

    content: str = ""
    reasoning: str = ""
    status: str = ""
    """A comment, such as `queued 3/12, about 8 s`."""
    finish: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    """Deltas of tool calls."""
    dropped_turns: int = 0
    usage: Mapping[str, Any] | None = None


class Client:
    """Speaks to one server. Each call has a connection of its own."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """`url` is the server's, with or without `/v1`. Raises `ConfigError`."""
        address = parse_url(url)
        check_key(key)
        self._host, self._port, self._secure = address.host, address.port, address.secure
        self._prefix, self.url = address.prefix, address.text
        self._key = key

    def get(self, path: str) -> Any:
        """Return the JSON answer of a GET. Raises `ServerError`."""
        return self._json("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON answer of a POST. Raises `ServerError`."""
        return self._json("POST", path, body)

    def models(self) -> list[dict[str, Any]]:
        """Return the cards of `/v1/models`. Raises `ServerError`."""
        answer = self.get("/v1/models")
        cards = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(cards, list) or not all(
            isinstance(card, dict) and isinstance(card.get("id"), str) for card in cards
        ):
            raise ServerError(f"What answers at {self.url} does not speak the OpenAI API.")
        return cards

    def chat(self, body: Mapping[str, Any]) -> Generator[Piece]:
        """Stream a chat completion. Closing the iterator ends the generation.

        Raises `ServerError`, also for failures within the stream.
        """
        with self._request("POST", "/v1/chat/completions", {**body, "stream": True}) as response:
            dropped = response.getheader("x-onegpu-dropped-turns", "")
            if dropped.isdecimal() and int(dropped):
                yield Piece(dropped_turns=int(dropped))
            yield from self._pieces(response)

    def _pieces(self, response: http.client.HTTPResponse) -> Iterator[Piece]:
        try:
            for event in events(iter(response.readline, b"")):
                if isinstance(event, Comment):
                    yield Piece(status=event.text)
                elif event.data == "[DONE]":
                    return
                else:
                    yield _piece(event.data)
        except TimeoutError as error:
            raise ServerError(f"The server was silent for {_STREAM_SECONDS:g} s.") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"The connection broke off ({_reason(error)}).") from error
        raise ServerError("The server ended the answer before it was complete.")

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        with self._request(method, path, body, _ANSWER_SECONDS) as response:
            try:
                return json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                raise ServerError(f"The connection to {self.url} broke off: {error}.") from error
            except ValueError as error:
                message = (
                    f"What answers at {self.url} is not this server: {path} is not JSON there."
                )
                raise ServerError(message) from error

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None, wait: float = _STREAM_SECONDS
    ) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=min(wait, _ANSWER_SECONDS))
        headers = {"Accept": "application/json, text/event-stream"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        with contextlib.closing(connection):
            try:
                connection.connect()
                connection.sock.settimeout(wait)
                connection.request(method, self._prefix + path, data, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._no_answer(error) from error
            # Closing the connection does not close a response that is to be read to the end.
            with response:
                if response.status >= 400:
                    raise self._refusal(response)
                yield response

    def _no_answer(self, error: Exception) -> ServerError:
        if isinstance(error, ConnectionRefusedError):
            return ServerError(
                f"No server answers at {self.url}. Start one with `onegpu serve MODEL`, or give another URL."
            )
        if isinstance(error, TimeoutError):
            return ServerError(f"The server at {self.url} does not answer in time.")
        return ServerError(f"The server at {self.url} cannot be asked: {_reason(error)}.")

    def _refusal(self, response: http.client.HTTPResponse) -> ServerError:
        status, message, code = response.status, "", None
        with contextlib.suppress(ValueError, OSError, http.client.HTTPException):
            answer = json.loads(response.read())
            error = answer.get("error") if isinstance(answer, dict) else None
            if isinstance(error, dict):
                message, code = str(error.get("message") or ""), error.get("code")
            elif isinstance(error, str):
                message = error
        if status == 401:
            ask = (
                "It does not know this key."
                if self._key
                else "It asks for a key: ONEGPU_KEY, or --key."
            )
            message = f"The server at {self.url} refused: {ask}"
        text = message or f"The server at {self.url} answered {status}."
        after = response.getheader("Retry-After", "")
        return ServerError(
            text,
            status=status,
            code=code if isinstance(code, str) else None,
            retry_after=float(after) if after.isdecimal() else 1.0,
        )


def _piece(data: str) -> Piece:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise ServerError(f"The server sent what is not JSON: {data[:80]!r}.") from error
    if not isinstance(chunk, dict):
        raise ServerError(f"The server sent what is not a chunk: {data[:80]!r}.")
    if (failure := chunk.get("error")) is not None:
        message = failure.get("message") if isinstance(failure, dict) else failure
        code = failure.get("code") if isinstance(failure, dict) else None
        raise ServerError(str(message), code=code if isinstance(code, str) else None)
    extra = chunk.get("onegpu")
    dropped = extra.get("dropped_turns") if isinstance(extra, dict) else 0
    choices = chunk.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return Piece(
        content=delta.get("content") or "",
        reasoning=delta.get("reasoning_content") or delta.get("reasoning") or "",
        finish=choices[0].get("finish_reason") or "",
        calls=tuple(delta.get("tool_calls") or ()),
        dropped_turns=dropped if isinstance(dropped, int) else 0,
        usage=chunk.get("usage"),
    )


def _reason(error: Exception) -> str:
    """Say it in the error's words, or by its name where it has none."""
    return str(error) or type(error).__name__
