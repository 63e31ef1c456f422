"""The listening socket, bound before anything is built so that a wrong address fails at once."""

from __future__ import annotations

import errno
import socket

from server.core.errors import ConfigError

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen. Raises `ConfigError` that says what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"server.host: {host!r} is not an address here ({error}).") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_advice(host, port, error)) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL to tell a person; loopback stands for every interface."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - compared, not bound
    return f"http://{shown}:{port}"


def _advice(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"Port {port} on {host} is in use. Stop the program that has it (ss -ltnp 'sport = "
                f":{port}' names it) or choose another port: --port {port + 1 if port < 65535 else 0}."
            )
        case errno.EACCES:
            return f"Port {port} needs root. Choose one of 1024 or more: --port 8000."
        case errno.EADDRNOTAVAIL:
            return f"server.host: this machine has no address {host}."
        case _:
            return f"Cannot listen on {host}:{port}: {error.strerror}."
