"""Texts of grammars by what they are written from: a schema is checked and written anew once, not with each request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

_MOST_CHARACTERS = 4 * 2**20


class Written:
    """Remembers what was asked for last. For any thread."""

    def __init__(self, limit: int = _MOST_CHARACTERS) -> None:
        """`limit`: characters of all texts together."""
        self._limit = limit
        self._size = 0
        self._texts: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def text(self, source: Any, write: Callable[[], str]) -> str:
        """Return what `write` returned for the JSON value `source`, or let it write. Errors are not remembered."""
        try:
            # In the order of its keys: it is the order of the answer's.
            told = json.dumps(source, separators=(",", ":"))
        except (RecursionError, ValueError):  # it nests without end, which `write` refuses
            return write()
        key = hashlib.sha256(told.encode()).digest()
        with self._lock:
            if (known := self._texts.get(key)) is not None:
                self._texts.move_to_end(key)
                return known
        text = write()
        with self._lock:
            if key not in self._texts and len(text) <= self._limit:
                self._texts[key] = text
                self._size += len(text)
            while self._size > self._limit:
                self._size -= len(self._texts.popitem(last=False)[1])
        return text
