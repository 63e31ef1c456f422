"""Addresses that no remote may have: those where clouds hand out credentials.

Loopback and private addresses are allowed: neighbours run there. What a name leads to is looked at
on the connection itself, before anything is sent on it, so that no later answer of a name server
makes a difference.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_PLAIN = re.compile(r"[\x21-\x7e]+")
_NAMES = frozenset(
    {
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        "metadata.goog",
        "metadata.google.internal",
    }
)
_ADDRESSES = frozenset(
    map(
        ipaddress.ip_address,
        (
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure
            "192.0.0.192",  # Oracle Cloud
            "fd00:ec2::254",  # AWS
            "fd20:ce::254",  # Google Cloud
        ),
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenAddress(Exception):
    """A remote's name leads to an address that it must not have."""


def check_url(url: str) -> None:
    """Raise `ValueError` for a base URL that cannot be, or must not be, a remote's."""
    if _PLAIN.fullmatch(url) is None:
        raise ValueError("must be ASCII without spaces; other letters of a host are written xn--…")
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise ValueError("must be an address such as https://api.example.com/v1") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("must be an address such as https://api.example.com/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not have a user or password; use api_key")
    if parts.query or parts.fragment:
        raise ValueError("must end with its path, without ? or #")
    if host in _NAMES or is_forbidden(host):
        raise ValueError("must not be an address where clouds hand out credentials")


def is_forbidden(text: str) -> bool:
    """Whether `text` is an address that no remote may have. Names are not looked up."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return any(_is_bad(one) for one in (address, *_embedded(address)))


class Look:
    """The HTTP client's `trace` of one request: looks at its connection if that is a new one."""

    fresh = False
    """Whether a connection was made for it."""

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        """Raise `ForbiddenAddress` before anything is sent to where no remote may be."""
        self.fresh = self.fresh or event == "connection.connect_tcp.started"
        await watch_connection(event, info)


async def watch_connection(event: str, info: Mapping[str, Any]) -> None:
    """Look at a connection once it is there. Raises `ForbiddenAddress`."""
    if event != "connection.connect_tcp.complete":
        return
    stream = info["return_value"]
    address = stream.get_extra_info("server_addr")
    if not address or is_forbidden(str(address[0])):
        await stream.aclose()
        raise ForbiddenAddress


def _is_bad(address: Address) -> bool:
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in _ADDRESSES
    )


def _embedded(address: Address) -> list[Address]:
    """Return IPv4 addresses that an IPv6 one stands for."""
    if not isinstance(address, ipaddress.IPv6Address):
        return []
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour]
    found += address.teredo or ()
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]
