"""The form of an API key: `ogk_ID_SECRETcheck`, 64 characters.

- ID: 10 characters, public; names the key in lists and logs, and finds it in the store.
- SECRET: 43 characters base62 of 32 random bytes.
- check: CRC-32 of all before it as 6 characters base62, so that what was mistyped or cut off is
  refused without a look into the store, and scanners for leaked secrets have no false alarms.

The store has only the BLAKE2b hash of the whole text. A slow hash would add nothing: nobody guesses
256 random bits.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

PREFIX = "ogk_"
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_LENGTH, _SECRET_LENGTH, _CHECK_LENGTH = 10, 43, 6
_FORM = re.compile(
    f"(?P<body>{PREFIX}(?P<id>[0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}})"
    f"(?P<check>[0-9A-Za-z]{{{_CHECK_LENGTH}}})"
)
_REFERENCE = re.compile(f"{PREFIX}(?P<id>[0-9A-Za-z]{{{_ID_LENGTH}}})(_[0-9A-Za-z]*)?")


def new_id() -> str:
    """Draw an id."""
    return "".join(secrets.choice(_DIGITS) for _ in range(_ID_LENGTH))


def new_key(key_id: str) -> str:
    """Draw a secret and return the key's whole text."""
    secret = _base62(int.from_bytes(secrets.token_bytes(32), "big"), _SECRET_LENGTH)
    body = f"{PREFIX}{key_id}_{secret}"
    return body + _check(body)


def id_of(presented: str) -> str | None:
    """Return the id of a text that has a key's form and checksum; None for any other text."""
    form = _FORM.fullmatch(presented)
    return form["id"] if form is not None and _check(form["body"]) == form["check"] else None


def referred_id(text: str) -> str | None:
    """Return the id in `ogk_ID` or in a key, whole or cut off: what a person may have at hand."""
    form = _REFERENCE.fullmatch(text)
    return form["id"] if form is not None else None


def key_hash(presented: str) -> bytes:
    """Return the 32 bytes that the store has instead of the key."""
    text = presented.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=32, person=b"onegpu api key").digest()


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode("ascii")), _CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
