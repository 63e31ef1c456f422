"""What a remote is asked, and about how many tokens that is: nothing is tokenized for it here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BYTES_PER_TOKEN = 4
"""English text has about so many."""


@dataclass(frozen=True, slots=True)
class RemoteCall:
    """One request."""

    path: str
    body: Mapping[str, Any]
    choices: int
    prompt_tokens: int
    """Estimated."""
    max_tokens: int
    """Of all choices together, for the key's limits."""


def tokens(size: int) -> int:
    """Return about how many tokens so many bytes of text have."""
    return -(-size // _BYTES_PER_TOKEN)


def tokens_in(value: Any) -> int:
    """Estimate the tokens of all texts in a JSON value; token ids are counted."""
    if isinstance(value, str):
        return tokens(len(value.encode("utf-8", "surrogatepass")))
    if isinstance(value, dict):
        return sum(map(tokens_in, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(tokens_in, value))
    return int(isinstance(value, int) and not isinstance(value, bool))
