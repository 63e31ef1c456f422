"""Addresses of single files on any server, with or without the checksum that they must have.

https://host/folder/file.gguf
https://host/folder/file.gguf#sha256=<64 hexadecimal digits>
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from server.catalog.references import is_hub_reference
from server.core.errors import ConfigError

_PIN = re.compile(r"sha256=([0-9a-f]{64})", re.IGNORECASE)
_LONGEST_NAME = 100
FOLDER = "_adapters"
"""In the models folder; no owner on the hub has a name that begins so."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file is, and which one it must be."""

    url: str
    """Without the checksum."""
    host: str
    """With the port, where one is given."""
    path: str
    sha256: str | None
    """Hexadecimal, in small letters; None where nobody pinned it."""

    @property
    def secure(self) -> bool:
        """Whether nobody on the way can change what comes: https. Else it is this machine's own."""
        return self.url.lower().startswith("https:")

    @property
    def name(self) -> str:
        """What to call it: without the query, which may hold a secret."""
        bare, query, _ = self.url.partition("?")
        pin = f"#sha256={self.sha256}" if self.sha256 else ""
        return f"{bare}{'?…' if query else ''}{pin}"

    def target(self, models_dir: Path) -> Path:
        """Return where the file lies here: another address, or another checksum, has another folder."""
        key = hashlib.sha256(f"{self.url}#{self.sha256 or ''}".encode()).hexdigest()[:12]
        file = _plain(PurePosixPath(unquote(self.path)).name).lstrip(".")[-_LONGEST_NAME:]
        if not file.lower().endswith(".gguf"):
            file = f"{file or 'adapter'}.gguf"
        return models_dir / FOLDER / f"{_plain(self.host)}-{key}" / file


def parse_address(text: str) -> Address | None:
    """Understand `text`; None when it is no http(s) address, or one of the hub.

    Raises `ConfigError` for one that cannot or must not be asked.
    """
    if not re.match(r"https?://", text, re.IGNORECASE) or is_hub_reference(text):
        return None
    url, _, fragment = text.partition("#")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{text} is not an address: {error}.") from error
    if not host or re.search(r"[\x00-\x20\x7f\\]", url):
        raise ConfigError(f"{text!r} is not an address. Write https://host/folder/file.gguf.")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"The address of a file at {host} has a user's name or password in it, which files and "
            "logs would keep. Download the file yourself and give its path."
        )
    if parts.scheme.lower() == "http" and not is_loopback(host):
        raise ConfigError(
            f"{text}: over http anybody on the way could change the file. Write https://, or "
            "download it yourself and give the file's path."
        )
    pin = _PIN.fullmatch(fragment)
    if fragment and pin is None:
        raise ConfigError(
            f"{text}: what follows # must be sha256= and 64 hexadecimal digits, the file's checksum."
        )
    return Address(url, parts.netloc, parts.path, pin[1].lower() if pin else None)


def is_loopback(host: str) -> bool:
    """Tell whether `host` is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
