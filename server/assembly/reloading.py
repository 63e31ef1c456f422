"""The configuration, read again while the server runs: all of it that can applies at once, or nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.core.errors import ConfigError
from server.settings import Settings
from server.settings.difference import Change, changes, merged
from server.settings.problems import KeyPath

log = logging.getLogger(__name__)

Commit = Callable[[], None]
"""Puts prepared values in force. Must not fail: others have been put in force before it."""


@dataclass(frozen=True, slots=True)
class Live:
    """Settings that need no restart, and how they apply."""

    names: tuple[str, ...]
    """Dotted; a section's name means all that is in it."""
    prepare: Callable[[Settings], Commit]
    """Given the settings as they are to be; may raise `ConfigError`. Takes milliseconds at most."""

    def covers(self, path: KeyPath) -> bool:
        """Whether the setting at `path` is one of these."""
        dotted = ".".join(path)
        return any(dotted == name or dotted.startswith(f"{name}.") for name in self.names)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be done."""

    settings: Settings
    applied: list[Change]
    waiting: list[Change]
    """What only a restart brings."""
    commits: list[Commit]


class Reloader:
    """Belongs to the event loop."""

    def __init__(
        self, settings: Settings, read: Callable[[], Settings], live: Sequence[Live]
    ) -> None:
        """`read` raises `ConfigError` with every mistake; it runs in a worker thread."""
        self.settings = settings
        """In force."""
        self._read = read
        self._live = live
        self._one_at_a_time = asyncio.Lock()

    async def reload(self) -> str:
        """Read and apply, and log what came of it. Returns that in one line; never raises."""
        async with self._one_at_a_time:
            try:
                plan = self._prepare(await asyncio.to_thread(self._read))
            except ConfigError as error:
                log.error("The configuration stays as it was: %s", error.message)  # noqa: TRY400 - told, not debugged
                return f"The configuration stays as it was: {error.message}"
            except Exception as error:
                log.exception("The configuration stays as it was")
                return f"The configuration stays as it was: {type(error).__name__}: {error}"
            # No await from here on: every request sees all of it or nothing.
            for commit in plan.commits:
                commit()
            self.settings = plan.settings
        return _tell(plan)

    def _prepare(self, new: Settings) -> _Plan:
        old = self.settings
        found = changes(old, new)
        applied = [change for change in found if self._is_live(change.path)]
        settings = merged(old, new, self._is_live)
        concerned = [
            one for one in self._live if any(one.covers(change.path) for change in applied)
        ]
        waiting = [change for change in found if change not in applied]
        return _Plan(settings, applied, waiting, [one.prepare(settings) for one in concerned])

    def _is_live(self, path: KeyPath) -> bool:
        return any(one.covers(path) for one in self._live)


def _tell(plan: _Plan) -> str:
    told = []
    if plan.applied:
        applied = ", ".join(change.told for change in plan.applied)
        told.append(f"The configuration was read again: {applied}.")
        log.info(told[-1])
    if plan.waiting:
        waiting = ", ".join(change.told for change in plan.waiting)
        told.append(f"Only a restart brings {waiting}.")
        log.warning(told[-1])
    if not told:
        told.append("The configuration was read again; nothing has changed.")
        log.info(told[-1])
    return " ".join(told)
