"""Which requests run, and at how many crashes each has run: a part of the page."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from server.supervisor.page import Page

LIFETIME = 3600.0
"""Seconds for which a crash is held against a request."""
_SIZE = 16
"""Bytes of a fingerprint; none is all zeros."""
_NONE = bytes(_SIZE)
_PLACES = 1024
"""For each of both lists. What finds no place is not remembered."""
_RUNNING = 4096
_SUSPECTS = _RUNNING + _PLACES * _SIZE
_SUSPECT = struct.Struct("=16sBd")
"""Fingerprint, crashes, monotonic time of the last one."""


@dataclass(frozen=True, slots=True)
class _Held:
    """Crashes that are held against a request."""

    place: int
    count: int
    when: float


class Fingerprints:
    """The worker writes; between two workers the supervisor does. Times are monotonic seconds."""

    def __init__(self, page: Page) -> None:
        """Read what is there."""
        self._memory = page.memory
        running = {self._read(place): place for place in range(_PLACES)}
        running.pop(_NONE, None)
        self._running = running
        self._free = sorted(set(range(_PLACES)) - set(running.values()), reverse=True)
        self._held = {
            found: _Held(place, count, when)
            for place in range(_PLACES)
            for found, count, when in (_SUSPECT.unpack_from(self._memory, _at(place)),)
            if found != _NONE
        }

    def add(self, fingerprint: bytes) -> None:
        """Note that a request runs."""
        if self._free and fingerprint not in self._running:
            place = self._running[fingerprint] = self._free.pop()
            self._write(place, fingerprint)

    def remove(self, fingerprint: bytes) -> None:
        """Note that it does not run any more."""
        place = self._running.pop(fingerprint, None)
        if place is not None:
            self._free.append(place)
            self._write(place, _NONE)

    def crashes(self, fingerprint: bytes) -> tuple[int, float]:
        """Return at how many crashes it ran, and when the last one was."""
        held = self._held.get(fingerprint)
        return (0, 0.0) if held is None else (held.count, held.when)

    def clear(self, fingerprint: bytes) -> None:
        """Forget its crashes."""
        held = self._held.pop(fingerprint, None)
        if held is not None:
            self._hold(_NONE, _Held(held.place, 0, 0.0))

    def crashed(self, now: float) -> int:
        """Count a crash of the process for all that run, and take them out; return how many."""
        for fingerprint, held in list(self._held.items()):
            if now - held.when >= LIFETIME:
                self.clear(fingerprint)
        free = set(range(_PLACES)) - {held.place for held in self._held.values()}
        running = list(self._running)
        for fingerprint in running:
            known = self._held.get(fingerprint)
            if known is not None:
                self._hold(fingerprint, _Held(known.place, min(known.count + 1, 255), now))
            elif free:
                self._hold(fingerprint, _Held(free.pop(), 1, now))
            self.remove(fingerprint)
        return len(running)

    def _read(self, place: int) -> bytes:
        at = _RUNNING + place * _SIZE
        found: bytes = self._memory[at : at + _SIZE]
        return found

    def _write(self, place: int, fingerprint: bytes) -> None:
        at = _RUNNING + place * _SIZE
        self._memory[at : at + _SIZE] = fingerprint

    def _hold(self, fingerprint: bytes, held: _Held) -> None:
        if fingerprint != _NONE:
            self._held[fingerprint] = held
        _SUSPECT.pack_into(self._memory, _at(held.place), fingerprint, held.count, held.when)


def _at(place: int) -> int:
    return _SUSPECTS + place * _SUSPECT.size
