"""A configuration as bytes, for a process that shall have it although its file is wrong by now."""

from __future__ import annotations

import json

from server.settings.schema import Settings


def to_bytes(settings: Settings) -> bytes:
    """Return what somebody has set; defaults are left out, so that they still count as defaults."""
    return settings.model_dump_json(exclude_unset=True, by_alias=True).encode()


def from_bytes(snapshot: bytes) -> Settings:
    """Return the settings that `to_bytes` was given. Raises `ValidationError`."""
    return Settings.model_validate(json.loads(snapshot))
