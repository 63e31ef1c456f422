"""The values in force, for people: `onegpu check-config` prints them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from server.settings.fields import leaves
from server.settings.loading import Loaded
from server.settings.problems import KeyPath
from server.settings.quantities import Kind, format_duration, format_size
from server.settings.schema import Settings


@dataclass(frozen=True, slots=True)
class Row:
    """One setting: dotted name, value as it would be written, where it comes from."""

    name: str
    value: str
    origin: str


def effective_values(loaded: Loaded) -> list[Row]:
    """Every setting with the value in force; derived values say what they follow from."""
    return [_row(loaded, path, field) for path, field in leaves(Settings)]


def written(field: FieldInfo, value: Any) -> str:
    """`value` as a YAML scalar in the form that people write."""
    kinds = {mark.name for mark in field.metadata if isinstance(mark, Kind)}
    if value is None:
        return "null"
    forms: dict[str, Callable[[Any], str]] = {
        "secret": lambda _: "(set)",
        "duration": format_duration,
        "size": format_size,
    }
    for kind, form in forms.items():
        if kind in kinds:
            return form(value)
    if isinstance(value, dict):
        return ", ".join(value) or "{}"
    if isinstance(value, tuple):
        return ", ".join(value) or "[]"
    return text_of(value)


def text_of(value: Any) -> str:
    """A plain value as a YAML scalar."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(loaded: Loaded, path: KeyPath, field: FieldInfo) -> Row:
    section: Any = loaded.settings
    for key in path[:-1]:
        section = getattr(section, key)
    value = getattr(section, path[-1])
    effective = getattr(section, f"effective_{path[-1]}", value)
    origin = str(loaded.origin(path))
    if effective != value:
        origin = f"derived ({origin}: {written(field, value)})"
    return Row(".".join(path), written(field, effective), origin)
