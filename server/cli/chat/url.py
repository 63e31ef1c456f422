"""A server's address, as people write it."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass

from server.core.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """The parts of an address."""

    host: str
    port: int | None
    secure: bool
    prefix: str
    """Path before `/v1`, without a slash at its end."""
    text: str
    """The whole, as it is shown."""


def parse_url(url: str) -> ServerUrl:
    """Read `url`, with or without scheme and `/v1`. Raises `ConfigError`."""
    given = url if "://" in url else f"http://{url}"
    try:
        parts = urllib.parse.urlsplit(given)
        port = parts.port
        (parts.hostname or "").encode("idna")  # as connecting would, with another error
    except ValueError as error:
        raise ConfigError(f"{url} is not a URL: {error}.") from error
    blank = re.search(r"[\x00-\x20\x7f]", parts.netloc)
    if parts.scheme not in ("http", "https") or not parts.hostname or blank:
        raise ConfigError(f"{url} is not a URL of a server. Write it like {DEFAULT_URL}.")
    path = urllib.parse.quote(parts.path, safe="/%!$&'()*+,;=:@~")
    prefix = path.rstrip("/").removesuffix("/v1")
    text = urllib.parse.urlunsplit((parts.scheme, parts.netloc, prefix, "", ""))
    return ServerUrl(parts.hostname, port, parts.scheme == "https", prefix, text)


def check_key(key: str | None) -> None:
    """Refuse what could not be sent. Raises `ConfigError`."""
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError("The key has characters that cannot be part of a key.")
