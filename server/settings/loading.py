"""Puts the file, the environment and the flags together, and validates the whole at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from server.settings import environment
from server.settings.fields import entry_type, find, section_type, unknown_key
from server.settings.messages import describe
from server.settings.problems import KeyPath, Origin, Problem, SettingsError
from server.settings.relations import Conflict, Conflicts
from server.settings.remotes import fill_keys
from server.settings.schema import Settings
from server.settings.yaml_source import YamlFile

_DEFAULT = Origin("default")


@dataclass(frozen=True, slots=True)
class Override:
    """A flag of the command line: the setting it sets, its name for messages, its text."""

    path: KeyPath
    flag: str
    text: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Valid settings, and where each value that is not a default came from."""

    settings: Settings
    origins: Mapping[KeyPath, Origin]

    def origin(self, path: KeyPath) -> Origin:
        """Where the setting at `path` got its value."""
        return self.origins.get(path, _DEFAULT)


def load(
    config: Path | None = None,
    *,
    flags: Sequence[Override] = (),
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """Read `config`, then `ONEGPU_*` variables, then `flags`; later ones win.

    `config` None takes the file that ONEGPU_CONFIG names, or none. `environ` None is the process's
    environment. Raises `SettingsError` with every mistake that was found.
    """
    environ = environment.read_environment() if environ is None else environ
    named = environ.get(environment.CONFIG_VARIABLE)
    if config is None and named:
        config = Path(named).expanduser()
    return _Merge(config).run(environ, flags)


class _Merge:
    """State of one `load`: values so far, where each came from, mistakes so far."""

    def __init__(self, config: Path | None) -> None:
        self._file = YamlFile(config) if config is not None else None
        self._values: dict[str, Any] = self._file.values if self._file is not None else {}
        _drop_empty_sections(Settings, self._values)
        self._problems = list(self._file.problems) if self._file is not None else []
        self._origins: dict[KeyPath, Origin] = {}
        if self._file is not None:
            self._origins = {
                path: Origin("file", f"{config}:{line}") for path, line in self._file.lines.items()
            }

    def run(self, environ: Mapping[str, str], flags: Sequence[Override]) -> Loaded:
        for path, name, text in environment.overrides(Settings, environ, self._problems):
            self._override(path, text, Origin("environment", name))
        for flag in flags:
            self._override(flag.path, flag.text, Origin("flag", flag.flag))
        for path, name, value in environment.hub_fallbacks(environ):
            self._fall_back(path, value, Origin("environment", name))
        for path, message in fill_keys(self._values, environ):
            self._problems.append(Problem(self._where(path), path, message))
        try:
            settings = Settings.model_validate(self._values)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                self._problems.extend(self._explain(details))
            raise SettingsError(sorted(self._problems, key=_line)) from None
        if self._problems:
            raise SettingsError(sorted(self._problems, key=_line))
        return Loaded(settings, self._origins)

    def _override(self, path: KeyPath, text: str, origin: Origin) -> None:
        """Set `path` from text: read leniently, as everything is text there."""
        field = find(Settings, path)
        if field is None:
            raise LookupError(f"no such setting: {path}")
        kind: Any = (
            Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        )
        value: Any = None
        if text != "null":
            try:
                value = TypeAdapter(kind).validate_python(text, strict=False)
            except ValidationError as error:
                self._problems.extend(
                    Problem(origin.where, path, describe(details))
                    for details in error.errors(include_url=False)
                )
                return
        section = self._section(path)
        if section is not None:
            section[path[-1]] = value
            self._origins[path] = origin

    def _fall_back(self, path: KeyPath, value: object, origin: Origin) -> None:
        """Set `path` unless somebody has, null not counted."""
        section = self._section(path)
        if section is not None and not section.get(path[-1]):
            section[path[-1]] = value
            self._origins[path] = origin

    def _section(self, path: KeyPath) -> dict[str, Any] | None:
        """The mapping that holds `path`, made if need be; None where the file has no section."""
        section = self._values
        for key in path[:-1]:
            inner = section.get(key)
            if inner is None:
                inner = section[key] = {}
            if not isinstance(inner, dict):
                return None  # validation is going to say so
            section = inner
        return section

    def _explain(self, details: ErrorDetails) -> Iterator[Problem]:
        path = tuple(str(part) for part in details["loc"])
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, Conflicts):
            yield from (self._blame(path, conflict) for conflict in cause.conflicts)
            return
        if details["type"] == "extra_forbidden":
            yield Problem(self._where(path), path, unknown_key(Settings, path))
            return
        while path and find(Settings, path) is None:
            path = path[:-1]  # pydantic appends the union's member that was tried
        yield Problem(self._where(path), path, describe(details))

    def _blame(self, section: KeyPath, conflict: Conflict) -> Problem:
        """Point at the first of the conflicting settings that somebody has set."""
        paths = [(*section, *field.split(".")) for field in conflict.fields]
        where = next((self._where(path) for path in paths if path in self._origins), "")
        return Problem(where, paths[0], conflict.message)

    def _where(self, path: KeyPath) -> str:
        if path in self._origins:
            return self._origins[path].where
        return self._file.where(path) if self._file is not None else ""


def _line(problem: Problem) -> int:
    """Sort key: mistakes in the file from top to bottom, then the others as found."""
    _, _, line = problem.where.rpartition(":")
    return int(line) if line.isdecimal() else sys.maxsize


def _drop_empty_sections(model: type[BaseModel], values: dict[str, Any]) -> None:
    """Read `engine:` with nothing but comments below, which is null in YAML, as no section."""
    for name, field in model.model_fields.items():
        inner = section_type(field)
        mapping = entry_type(field) is not None
        if name not in values or (inner is None and not mapping):
            continue
        if values[name] is None:
            del values[name]
        elif inner is not None and isinstance(values[name], dict):
            _drop_empty_sections(inner, values[name])
