"""What is said about a schema that cannot be enforced, and where in it."""

from __future__ import annotations

from server.core.errors import InvalidRequest

Pointer = tuple[str, ...]
"""The keys from the schema's root to a place in it."""


class Refused(Exception):
    """A part of the schema that cannot be enforced, or is no JSON Schema."""

    def __init__(self, reason: str, at: Pointer = ()) -> None:
        """`reason` is a clause that names the keyword."""
        super().__init__(reason)
        self.reason = reason
        self.at = at

    def told(self, param: str) -> InvalidRequest:
        """As the error that the client gets."""
        place = "#" + "".join(f"/{_escaped(key)}" for key in self.at)
        return InvalidRequest(
            f"The JSON Schema cannot be enforced: {self.reason} (at {place[:200]}).", param=param
        )


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
