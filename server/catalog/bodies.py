"""The bytes of a file as a server sends them: all, or from a place on."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2

from server.catalog.hub_errors import HubError


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of a file from `start` on."""

    start: int
    total: int | None
    """Bytes of the whole file, None where the server does not say."""
    chunks: Iterator[bytes]


def quiet_client() -> None:
    """Keep addresses, which may be signed, out of the log that the HTTP client writes."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def range_header(start: int, end: int | None) -> dict[str, str]:
    """Return the header that asks for bytes `start` to `end` (not included; None: all)."""
    if not start and end is None:
        return {}
    return {"range": f"bytes={start}-{'' if end is None else end - 1}"}


def body_of(response: httpx2.Response) -> Body:
    """Understand an answer of status 200 or 206; `start` is 0 of a server that ignores ranges."""
    if response.status_code == 206:
        text = response.headers.get("content-range")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text or "")
        if match is None:
            raise HubError(f"The server sent a part of a file without saying which: {text!r}.")
        total = None if match[2] == "*" else int(match[2])
        return Body(int(match[1]), total, response.iter_bytes())
    coded = response.headers.get("content-encoding", "identity") != "identity"
    length = response.headers.get("content-length")
    total = int(length) if length and not coded and response.status_code == 200 else None
    return Body(0, total, response.iter_bytes())


def read_part(body: Body, name: str, *, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` (not included) of the file `name`, fewer where it ends earlier.

    Raises `HubError` for a body that begins after `start`.
    """
    data, skip = bytearray(), start - body.start
    if skip < 0:
        raise HubError(
            f"The server was asked for {name} from byte {start:,} on and sends it from "
            f"byte {body.start:,} on. Try again later, or another mirror."
        )
    for chunk in body.chunks:
        data += chunk
        if len(data) >= skip + end - start:
            break
    return bytes(data[skip : skip + end - start])
