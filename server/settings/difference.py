"""What two configurations differ in, and one made of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from server.settings.fields import leaves, section_type
from server.settings.problems import KeyPath, Problem, SettingsError
from server.settings.report import written
from server.settings.schema import Settings
from server.settings.snapshot import from_bytes, to_bytes

Section = TypeVar("Section", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that is another."""

    path: KeyPath
    told: str
    """For people: `gateway.max_queue 64 → 10`; secrets are not told, nor what is not seen from it."""


def changes(old: Settings, new: Settings) -> list[Change]:
    """Return every setting whose value differs."""
    found = []
    for path, field in leaves(Settings):
        before, after = _value(old, path), _value(new, path)
        if before == after:
            continue
        name, shown = ".".join(path), (written(field, before), written(field, after))
        told = name if shown[0] == shown[1] else f"{name} {shown[0]} → {shown[1]}"
        found.append(Change(path, told))
    return found


def merged(old: Settings, new: Settings, taken: Callable[[KeyPath], bool]) -> Settings:
    """Return `old` with those values of `new` that differ and are `taken`.

    Raises `SettingsError` where these do not go together.
    """
    both = _merge(old, new, taken, ())
    try:
        return from_bytes(to_bytes(both))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = (
            f"does not go together with what stays until a restart ({first['msg']}). Restart the "
            "server to have all of it"
        )
        path = tuple(str(part) for part in first["loc"])
        raise SettingsError([Problem("", path, message)]) from error


def _merge(old: Section, new: Section, taken: Callable[[KeyPath], bool], above: KeyPath) -> Section:
    updates: dict[str, Any] = {}
    for name, field in type(old).model_fields.items():
        before, after, path = getattr(old, name), getattr(new, name), (*above, name)
        if before == after:
            continue
        if section_type(field) is not None:
            updates[name] = _merge(before, after, taken, path)
        elif taken(path):
            updates[name] = after
    return old.model_copy(update=updates)


def _value(settings: Settings, path: KeyPath) -> Any:
    value: Any = settings
    for key in path:
        value = getattr(value, key)
    return value
