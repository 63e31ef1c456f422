"""Finds settings by their key path, and the nearest one to a misspelt path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from server.settings.problems import KeyPath


def section_type(field: FieldInfo) -> type[BaseModel] | None:
    """The section's model when `field` is a section, else None."""
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def entry_type(field: FieldInfo) -> type[BaseModel] | None:
    """The model of each entry when `field` maps names to sections, else None."""
    if get_origin(field.annotation) is not dict:
        return None
    _, entry = get_args(field.annotation)
    return entry if isinstance(entry, type) and issubclass(entry, BaseModel) else None


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by the names that people write."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def leaves(model: type[BaseModel], above: KeyPath = ()) -> Iterator[tuple[KeyPath, FieldInfo]]:
    """Every setting that is not a section, in the order of declaration."""
    for name, field in model.model_fields.items():
        inner = section_type(field)
        if inner is None:
            yield (*above, name), field
        else:
            yield from leaves(inner, (*above, name))


def find(model: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    """The setting or section at `path`."""
    field = keys(model).get(path[0]) if path else None
    if field is None or len(path) == 1:
        return field
    if (entry := entry_type(field)) is not None:
        named = FieldInfo(annotation=entry)
        return named if len(path) == 2 else find(entry, path[2:])
    inner = section_type(field)
    return find(inner, path[1:]) if inner is not None else None


def unknown_key(model: type[BaseModel], path: KeyPath) -> str:
    """What to say about `path`, which is no setting: the nearest name, or all that are allowed."""
    section = model if len(path) == 1 else _section(model, path[:-1])
    siblings = list(keys(section)) if section is not None else []
    return "unknown key" + _advice(model, path, siblings)


def nearest(model: type[BaseModel], path: KeyPath) -> KeyPath | None:
    """The setting that `path` most probably means."""
    known = {".".join(leaf): leaf for leaf, _ in leaves(model)}
    for leaf in known.values():
        if leaf[-1] == path[-1].lower():
            return leaf
    dotted = ".".join(path).lower()
    names = difflib.get_close_matches(dotted, known, n=1, cutoff=0.7)
    if not names:
        by_leaf = {leaf[-1]: leaf for leaf in known.values()}
        found = difflib.get_close_matches(path[-1].lower(), by_leaf, n=1, cutoff=0.8)
        return by_leaf[found[0]] if found else None
    return known[names[0]]


def _section(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    field = find(model, path)
    return section_type(field) if field is not None else None


def _advice(model: type[BaseModel], path: KeyPath, siblings: list[str]) -> str:
    near = difflib.get_close_matches(path[-1].lower(), siblings, n=1, cutoff=0.6)
    if near and "." not in path[-1]:
        return f"; did you mean {'.'.join((*path[:-1], near[0]))}?"
    # The whole name written as one key (`engine.slots: 8`), or a key in the wrong section.
    meant = nearest(model, tuple(path[-1].split(".")))
    if meant is None:
        return f"; allowed here: {', '.join(siblings)}"
    return f"; did you mean {'.'.join(meant)} (the key {meant[-1]} within {'.'.join(meant[:-1])})?"
