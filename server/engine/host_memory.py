"""Prefixes in host memory: which are kept, for whom, and which go first.

Nothing here copies cells: `server.engine.parking` does, when an edit says so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from server.engine.copy_pace import CopyPace
from server.engine.interface import HostState
from server.engine.prefix_index import TOKEN_BYTES, common_prefix_length

BLOCK = 64
"""Tokens. Prefixes are found by whole blocks: what has less in common is computed again as fast."""

MOST_ENTRIES = 1024
"""Of one engine; the choice of who goes looks at all of them."""

RETURN = 1 / 4
"""Of the prefixes that leave the KV cache so many are asked for again: assumed, not measured."""

_BLOCK_BYTES = BLOCK * TOKEN_BYTES
_CANDIDATES = 16


class HostBudget:
    """Bytes that all engines of the process together may keep in host memory; safe from any thread.

    An engine has no more than an equal share; one that loads makes the others' shares smaller, and they give back
    what is too much at their next step.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: bytes; 0 keeps nothing."""
        self.limit = limit
        self._lock = threading.Lock()
        self._used = 0
        self._members = 0

    @property
    def used(self) -> int:
        """Bytes taken by all."""
        return self._used

    @property
    def share(self) -> int:
        """Bytes that one engine may take."""
        return self.limit // max(1, self._members)

    def join(self) -> None:
        """Count one more engine."""
        with self._lock:
            self._members += 1

    def leave(self, nbytes: int) -> None:
        """Count one less, and give back the `nbytes` that it had."""
        with self._lock:
            self._members -= 1
            self._used -= nbytes

    def take(self, nbytes: int) -> bool:
        """Take `nbytes`, if they are within the limit."""
        with self._lock:
            if self._used + nbytes > self.limit:
                return False
            self._used += nbytes
            return True

    def give(self, nbytes: int) -> None:
        """Give `nbytes` back."""
        with self._lock:
            self._used -= nbytes


class Entry:
    """One prefix in host memory."""

    __slots__ = ("hits", "key", "last_used", "order", "pins", "public", "scope", "state")

    def __init__(self, scope: str, key: bytes, public: int, state: HostState, tick: int) -> None:
        """`key`: its tokens, as `token_key` makes them, one per cell of `state`; the first `public` are public."""
        self.scope = scope
        self.key = key
        self.public = public
        self.state = state
        self.last_used = tick
        self.hits = 0
        self.pins = 0
        """How many need it to stay; it does not go while there are any."""
        self.order: Sequence[int] = ()
        """Its positions as they were saved, where that matters: as `Places.order`."""

    @property
    def cells(self) -> int:
        """Cells that it holds."""
        return len(self.key) // TOKEN_BYTES


class _Node:
    """Entries that agree in their first blocks, by the block that comes next."""

    __slots__ = ("children", "entries")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] = {}
        self.entries: dict[Entry, None] = {}
        """All that come through here, the latest last."""


class HostMemory:
    """The prefixes of one engine, never more bytes than its share of the budget.

    They belong to one model, adapter and KV type, as the engine does, and go with it.
    """

    def __init__(self, budget: HostBudget) -> None:
        """Join those who share `budget`; `close` leaves them."""
        self.nbytes = 0
        self.row_seconds: float | None = None
        """What computing a prompt row takes; None while nobody knows."""
        self.spared = 0
        """Prefixes that were not worth a copy when they had to go."""
        self._budget = budget
        self._roots: dict[str | None, _Node] = {}
        """Scope → the root of its entries; None → that of what is public of all entries."""
        self._entries: dict[Entry, None] = {}
        self._tick = 0
        self._closed = False
        self._in, self._out = CopyPace(), CopyPace()
        budget.join()

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries, the oldest first."""
        return iter(self._entries)

    @property
    def share(self) -> int:
        """Bytes that it may take."""
        return self._budget.share

    def find(self, scope: str, key: bytes, public: int = 0) -> tuple[Entry | None, int]:
        """Return the entry that `scope` may have most tokens of `key` from, and how many: a block or more.

        `public`: so many of the tokens may come from other scopes, where they are public, too.
        """
        best, most = self._longest(scope, key)
        if public * TOKEN_BYTES > most:
            other, cells = self._longest(None, key[: public * TOKEN_BYTES])
            if cells > most:
                best, most = other, cells
        return best, most // TOKEN_BYTES

    def agreeing(self, scope: str, key: bytes, public: int = 0) -> int:
        """Return how many tokens of `key` an entry has at least: whole blocks. Any thread may ask."""
        own = sum(1 for _ in self._path(scope, key)) - 1
        others = sum(1 for _ in self._path(None, key[: public * TOKEN_BYTES])) - 1
        return BLOCK * max(own, others)

    def use(self, entry: Entry) -> None:
        """Note that somebody takes `entry`; it stays until `release`."""
        self._tick += 1
        entry.last_used = self._tick
        entry.hits += 1
        entry.pins += 1

    def release(self, entry: Entry) -> None:
        """Undo a `use`: it may go again, when it is worth least."""
        entry.pins -= 1

    def make_room(self, nbytes: int, scope: str, key: bytes, public: int = 0) -> bool:
        """Take `nbytes` of the budget for a prefix to come; False when that cannot be.

        What begins it goes, for it holds that, too, or all of it but some last tokens; then what is worth least.
        """
        if nbytes > self._budget.share or self._closed:
            return False
        for entry in self._beginnings(scope, key):
            if entry.public <= public:
                self.drop(entry)
        while (
            self.nbytes + nbytes > self._budget.share
            or len(self._entries) >= MOST_ENTRIES
            or not self._budget.take(nbytes)
        ):
            if not self._drop_least():
                return False
        self.nbytes += nbytes
        return True

    def borrow(self, nbytes: int) -> bool:
        """Take `nbytes` of what is free, for a copy that does not stay. False: it is not, and nothing goes for it."""
        if self._closed or self.nbytes + nbytes > self._budget.share:
            return False
        if not self._budget.take(nbytes):
            return False
        self.nbytes += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """Give back what `make_room` or `borrow` took and nothing came to need, or needs any more."""
        self.nbytes -= nbytes
        self._budget.give(nbytes)

    def add(self, scope: str, key: bytes, state: HostState, public: int = 0) -> Entry:
        """Keep `state`, whose bytes `make_room` took."""
        self._tick += 1
        public = min(public, len(key) // TOKEN_BYTES)
        entry = Entry(scope, key, public, state, self._tick)
        self._entries[entry] = None
        self._enter(scope, key, entry)
        if public >= BLOCK:
            self._enter(None, key[: public * TOKEN_BYTES], entry)
        return entry

    def drop(self, entry: Entry) -> None:
        """Forget an entry and give its bytes back."""
        self.give_back(entry.state.nbytes)
        del self._entries[entry]
        self._leave(entry.scope, entry.key, entry)
        if entry.public >= BLOCK:
            self._leave(None, entry.key[: entry.public * TOKEN_BYTES], entry)

    def measured(self, cells: int, seconds: float) -> None:
        """Take what it took to copy `cells` cells back."""
        self._in.observe(cells, seconds)

    def measured_out(self, cells: int, seconds: float) -> None:
        """Take what it took to save `cells` cells."""
        self._out.observe(cells, seconds)

    def moving_seconds(self, cells: int) -> float | None:
        """Return what to save `cells` cells and to copy them back should take; None before both were measured."""
        out, back = self._out.seconds(cells), self._in.seconds(cells)
        return None if out is None or back is None else out + back

    def is_worth(self, entry: Entry, rows: int) -> bool:
        """Tell whether to copy all of `entry` back is quicker than to compute `rows` rows.

        While one of the two was never measured, from `BLOCK` rows on.
        """
        copying = self._in.seconds(entry.cells)
        if self.row_seconds is None or copying is None:
            return rows >= BLOCK
        return rows * self.row_seconds > copying

    def is_worth_saving(self, cells: int, lost: int, most_copied: int) -> bool:
        """Tell whether to save `cells` takes less than to compute `lost` of them, as often as they are asked for again.

        While one of the two was never measured: whether no more than `most_copied` are copied for each that is lost.
        """
        copying = self._out.seconds(cells)
        if self.row_seconds is None or copying is None:
            return lost * most_copied >= cells
        return lost * self.row_seconds * RETURN > copying

    def spare(self) -> None:
        """Count a prefix that was not worth a copy."""
        self.spared += 1
        self._out.doubt()

    def trim(self) -> None:
        """Give back what is beyond this engine's share, which is smaller when another one has come."""
        while self.nbytes > self._budget.share and self._drop_least():
            pass

    def close(self) -> None:
        """Forget all entries and leave the budget. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._budget.leave(self.nbytes)
        self.nbytes = 0
        self._entries.clear()
        self._roots.clear()

    def _enter(self, root: str | None, key: bytes, entry: Entry) -> None:
        node = self._roots.setdefault(root, _Node())
        node.entries[entry] = None
        for block in _blocks(key):
            node = node.children.setdefault(block, _Node())
            node.entries[entry] = None

    def _leave(self, root: str | None, key: bytes, entry: Entry) -> None:
        node = self._roots[root]
        del node.entries[entry]
        if not node.entries:
            del self._roots[root]
        for block in _blocks(key):
            child = node.children[block]
            del child.entries[entry]
            if not child.entries:  # nor has any node below
                del node.children[block]
                return
            node = child

    def _longest(self, root: str | None, key: bytes) -> tuple[Entry | None, int]:
        """Return the entry below a root with most bytes in common with `key`, and how many: a block or more, or 0."""
        *_, node = self._path(root, key)
        best, most = None, _BLOCK_BYTES - 1
        for _, entry in zip(range(_CANDIDATES), reversed(node.entries), strict=False):
            allowed = entry.key if root is not None else entry.key[: entry.public * TOKEN_BYTES]
            common = common_prefix_length(key, allowed)
            if common > most:
                best, most = entry, common
        return best, 0 if best is None else most

    def _path(self, root: str | None, key: bytes) -> Iterator[_Node]:
        """Yield the nodes that agree with `key`, from its first block on; one without entries, if there is none."""
        node = self._roots.get(root)
        if node is None:
            yield _Node()
            return
        yield node
        for block in _blocks(key):
            child = node.children.get(block)
            if child is None:
                return
            yield child
            node = child

    def _beginnings(self, scope: str, key: bytes) -> list[Entry]:
        """Return the entries that `key` begins with, but for less than a block at their ends.

        The template often writes a conversation's last answer in other tokens than were generated.
        """
        found = []
        for depth, node in enumerate(self._path(scope, key)):
            end = (depth + 2) * _BLOCK_BYTES
            found += [
                entry
                for entry in node.entries
                if depth
                and len(entry.key) < end
                and not entry.pins
                and len(entry.key) - common_prefix_length(key, entry.key) < _BLOCK_BYTES
            ]
        return list(dict.fromkeys(found))

    def _drop_least(self) -> bool:
        """Drop the entry that is worth least: long, lately and often used ones are worth most."""
        free = [entry for entry in self._entries if not entry.pins]
        if not free:
            return False
        tick = self._tick + 1
        self.drop(min(free, key=lambda one: one.cells * (1 + one.hits) / (tick - one.last_used)))
        return True


def _blocks(key: bytes) -> Iterator[bytes]:
    """Yield the whole blocks of `key`."""
    for end in range(_BLOCK_BYTES, len(key) + 1, _BLOCK_BYTES):
        yield key[end - _BLOCK_BYTES : end]
