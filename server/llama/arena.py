"""Host memory for saved cells that is used again and again.

The first use of a page takes far longer than the next one, on a virtual machine twenty times as long, and all streams
wait while cells are saved.
"""

from __future__ import annotations

import logging
import mmap
import sys
import threading
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

_LEAST_BLOCK = 64 * 2**10
_MOST_BLOCKS = 2**16
_ON_DEMAND = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""MAP_NORESERVE: Python before 3.13 does not name it."""


class Arena:
    """One range of addresses, cut into blocks, for all engines of the process; safe from any thread.

    Its memory is taken at first use and never exceeds `limit` bytes, rounded up to a block. There are twice as many
    addresses, so that a place is found between others; what is warm beyond the limit then goes back to the system.
    """

    def __init__(self, limit: int) -> None:
        """Reserve addresses alone; `OSError` where the system does not give them. `limit`: bytes, 1 or more."""
        self.block = max(_LEAST_BLOCK, 1 << (2 * limit // _MOST_BLOCKS - 1).bit_length())
        self._most = -(-limit // self.block)
        self.limit = limit
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _ON_DEMAND
        self._map = mmap.mmap(-1, 2 * self._most * self.block, flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                self._map.madvise(mmap.MADV_HUGEPAGE)
            except OSError as error:
                log.debug("No huge pages for saved cells: %s", error)
        self._used = np.zeros(2 * self._most, np.bool_)
        self._warm = np.zeros(2 * self._most, np.bool_)
        """Blocks that may have memory."""
        self._lock = threading.Lock()
        self._returned: deque[slice] = deque()
        """Of arrays that are gone. Finalizers run anywhere, inside of the lock, too, so they only append."""

    @property
    def used(self) -> int:
        """Bytes of the blocks that arrays have."""
        with self._lock:
            self._take_back()
            return int(self._used.sum()) * self.block

    @property
    def warm(self) -> int:
        """Bytes of the blocks that may have memory, with or without an array."""
        with self._lock:
            return int(self._warm.sum()) * self.block

    def take(self, nbytes: int) -> npt.NDArray[np.uint8] | None:
        """Return `nbytes` bytes with any content at the lowest free place; None when there is no room for them.

        They are free again once nothing refers to the array or a view of it.
        """
        count = -(-nbytes // self.block)
        with self._lock:
            self._take_back()
            start = self._lowest(count)
            if start is None:
                return None
            place = slice(start, start + count)
            array = np.frombuffer(self._map, np.uint8, nbytes, start * self.block)
            weakref.finalize(array, self._returned.append, place).atexit = False
            self._used[place] = self._warm[place] = True
            beyond = int(self._warm.sum()) - self._most
            if beyond > 0:
                self._cool(np.flatnonzero(self._warm & ~self._used)[-beyond:])
        return array

    def touch(self, nbytes: int) -> None:
        """Use `nbytes` bytes once, if they are free, so that who takes them next need not wait for the system."""
        if (array := self.take(nbytes)) is not None:
            array[:: mmap.PAGESIZE] = 0

    def cool(self) -> None:
        """Give all memory that no array has back to the system."""
        with self._lock:
            self._take_back()
            self._cool(np.flatnonzero(self._warm & ~self._used))

    def _take_back(self) -> None:
        while self._returned:
            self._used[self._returned.popleft()] = False

    def _lowest(self, count: int) -> int | None:
        """Return the first of `count` free blocks, one after the other; None if that were more than the limit."""
        if count < 1 or int(self._used.sum()) + count > self._most:
            return None
        begins, ends = _runs(np.flatnonzero(~self._used))
        large = np.flatnonzero(ends - begins >= count)
        return int(begins[large[0]]) if large.size else None

    def _cool(self, blocks: npt.NDArray[np.intp]) -> None:
        """Take the memory of free blocks, in ascending order, away."""
        for begin, end in zip(*_runs(blocks), strict=True):
            length = int(end - begin) * self.block
            self._map.madvise(mmap.MADV_DONTNEED, int(begin) * self.block, length)
        self._warm[blocks] = False


def _runs(blocks: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return first and end of each run of neighbours in ascending `blocks`."""
    if not blocks.size:
        return blocks, blocks
    cuts = np.flatnonzero(np.diff(blocks) > 1)
    begins = blocks[np.concatenate(([0], cuts + 1))]
    ends = blocks[np.concatenate((cuts, [blocks.size - 1]))] + 1
    return begins, ends


def make_arena(limit: int) -> Arena | None:
    """Return an arena of `limit` bytes; None for 0, and where the system gives no such addresses."""
    if limit < 1:
        return None
    try:
        return Arena(limit)
    except (OSError, ValueError, OverflowError) as error:
        log.warning("No addresses for saved cells, so that saving them takes longer: %s", error)
        return None
