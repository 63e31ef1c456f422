"""Serving with a profile: which contexts have one, what it changes, and why another is not taken."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from server.assembly.grouping import Group
from server.assembly.sizing import Sized, sized
from server.assembly.tuning.candidates import is_explicit
from server.assembly.tuning.profile import (
    HoldsFor,
    Profile,
    holds_for,
    profile_path,
    read_profile,
)
from server.catalog.plan import Memory
from server.core.errors import ConfigError
from server.settings import EngineSettings, ModelSettings
from server.settings.report import text_of

log = logging.getLogger(__name__)

_DIFFERENCES = {
    "machine": "another machine",
    "library": "another version of llama.cpp",
    "context": "other sizes",
}


@dataclass(frozen=True, slots=True)
class Applied:
    """A profile that a context is served with."""

    name: str
    """Of the context."""
    path: Path
    settings: Mapping[str, Any]
    """What it sets."""
    left: tuple[str, ...]
    """What it would set, but somebody has."""

    @property
    def told(self) -> str:
        """Say it in a line."""
        values = ", ".join(f"{name} {text_of(value)}" for name, value in self.settings.items())
        kept = f"; the configuration itself sets {', '.join(self.left)}" if self.left else ""
        return f"{self.name} is served as tuned for this machine: {values or 'nothing'}{kept} ({self.path})"


def with_changes(group: Group, changes: Mapping[str, Any]) -> Group:
    """Return the group with settings changed. Raises `ConfigError` where they do not go together."""
    engine = {name.partition(".")[2]: v for name, v in changes.items() if name[:7] == "engine."}
    model = {name.partition(".")[2]: v for name, v in changes.items() if name[:6] == "model."}
    try:
        members = tuple(
            replace(
                one,
                model=ModelSettings.model_validate(_written(one.model) | model),
                engine=EngineSettings.model_validate(_written(one.engine) | engine),
            )
            for one in group.members
        )
    except ValidationError as error:
        raise ConfigError(str(error.errors(include_url=False)[0]["msg"])) from error
    return Group(members)


def tuned(
    contexts: Sequence[Sized], memory: Memory, folder: Path
) -> tuple[list[Sized], list[Applied]]:
    """Return the contexts with the profiles that hold for them. What is not taken is logged."""
    if not folder.is_dir():
        return list(contexts), []
    found = [_profile(one, memory, folder) for one in contexts]
    applied = [_apply(one, *hit) if hit else None for one, hit in zip(contexts, found, strict=True)]
    if not any(applied):
        return list(contexts), []
    groups = [
        with_changes(one.group, hit.settings) if hit else one.group
        for one, hit in zip(contexts, applied, strict=True)
    ]
    try:
        sizes = sized(groups, memory)
    except ConfigError as error:
        log.warning("No profile is taken, for with them there is no room: %s", error.message)
        return list(contexts), []
    changed = [
        one.group.name for one, now in zip(contexts, sizes, strict=True) if _room(one) != _room(now)
    ]
    if changed:
        log.warning("No profile is taken: the sizes of %s would change", ", ".join(changed))
        return list(contexts), []
    taken = [hit for hit in applied if hit]
    for hit in taken:
        log.info("%s", hit.told)
    return sizes, taken


def _profile(one: Sized, memory: Memory, folder: Path) -> tuple[Path, Profile] | None:
    """Find the profile of a context, and say of others why they are none."""
    if one.group.engine.deterministic:
        return None  # it decides by itself what is tuned
    here = holds_for(one, memory)
    path = profile_path(folder, one, here)
    if not path.is_file():
        for other in sorted(folder.glob(f"*-{here.model[:8]}-*.yaml")):
            log.info("%s is not taken for %s: other sizes", other, one.group.name)
        return None
    try:
        profile = read_profile(path)
    except ValueError as error:
        log.warning("%s is not taken for %s: %s", path, one.group.name, error)
        return None
    if reason := _other(profile.holds_for, here):
        log.warning("%s is not taken for %s: %s. Tune again.", path, one.group.name, reason)
        return None
    return path, profile


def _other(there: HoldsFor, here: HoldsFor) -> str:
    """Say in what a profile is for something else; empty where it is not."""
    if there.model != here.model:
        return "it is of another model"
    return "; ".join(
        f"it is for {what} ({getattr(there, name)}; here: {getattr(here, name)})"
        for name, what in _DIFFERENCES.items()
        if getattr(there, name) != getattr(here, name)
    )


def _apply(one: Sized, path: Path, profile: Profile) -> Applied | None:
    left = tuple(setting for setting in profile.settings if is_explicit(one, setting))
    taken = {name: value for name, value in profile.settings.items() if name not in left}
    made = Applied(one.group.name, path, taken, left)
    try:
        with_changes(one.group, taken)
    except ConfigError as error:
        log.warning("%s is not taken for %s: %s", path, one.group.name, error.message)
        return None
    return made


def _written(section: EngineSettings | ModelSettings) -> dict[str, Any]:
    return section.model_dump(exclude_unset=True)


def _room(one: Sized) -> object:
    """What a profile leaves as it is; the others it may set, or they follow."""
    return replace(one.sizes, n_gpu_layers=0, kv_layout="unified", flash_attention=True)
