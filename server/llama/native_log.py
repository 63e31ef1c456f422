"""llama.cpp's log lines and its last words, forwarded to Python's logging."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import logging
import os
import re
import threading
from collections.abc import Callable

_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_ABORT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)

_CONTINUATION = 5
_PREFIX = re.compile(r"^(?:\w+: )*(?:error loading model[^:]*: )*")
_SOURCE_PATH = re.compile(r"\S*/(?=[\w.-]+:\d+: )")
_SIZE_MARK = " buffer size = "
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}
"""`ggml_log_level` to Python's. llama.cpp's "info" is a page per load and its warnings are routine:
one step down."""


class NativeLog:
    """Collects lines from `llama_log_set`.

    Keeps its callbacks alive: C must never call a freed one.
    """

    def __init__(self, keep: int = 200) -> None:
        """Remember the last `keep` lines."""
        self._logger = logging.getLogger("onegpu.llama_cpp")
        self._lock = threading.Lock()
        self._lines: collections.deque[tuple[int, str]] = collections.deque(maxlen=keep)
        # Apart from the ring: a load's debug lines push them out of it.
        self._sizes: collections.deque[str] = collections.deque(maxlen=keep)
        self._partial = ""
        self._level = logging.DEBUG
        self.last_words: Callable[[str], None] = lambda _: None
        """Told what an abort says. Called in a process that ends when it returns."""
        self._log_callback = _LOG_CALLBACK(self._on_log)
        self._abort_callback = _ABORT_CALLBACK(self._on_abort)

    def install(self, llama: ctypes.CDLL) -> None:
        """Point llama.cpp's log and ggml's abort message at this object.

        `llama` is the handle of libllama.
        """
        llama.llama_log_set.restype = None
        llama.llama_log_set.argtypes = [_LOG_CALLBACK, ctypes.c_void_p]
        llama.llama_log_set(self._log_callback, None)
        # The symbol is libggml-base's. Opening that file by path would load it twice: wheels hold
        # copies, not links.
        with contextlib.suppress(AttributeError):
            llama.ggml_set_abort_callback.restype = ctypes.c_void_p
            llama.ggml_set_abort_callback.argtypes = [_ABORT_CALLBACK]
            llama.ggml_set_abort_callback(self._abort_callback)

    def reason(self) -> str:
        """Return the first error since `clear`, without the names of C functions; "no reason given" if none."""
        with self._lock:
            errors = [text for level, text in self._lines if level >= logging.ERROR]
        return _PREFIX.sub("", errors[0]).strip() if errors else "no reason given"

    def sizes(self) -> list[str]:
        """Return the lines since `clear` that tell a buffer's size."""
        with self._lock:
            return list(self._sizes)

    def clear(self) -> None:
        """Forget the lines, so that `reason` and `sizes` speak of what comes next."""
        with self._lock:
            self._lines.clear()
            self._sizes.clear()

    def _on_log(self, level: int, text: bytes | None, _data: object) -> None:
        # An exception must not reach C; whatever goes wrong here costs a log line only.
        with contextlib.suppress(Exception):
            self._add(level, (text or b"").decode("utf-8", "replace"))

    def _add(self, level: int, text: str) -> None:
        with self._lock:
            if level != _CONTINUATION:
                self._level = _LEVELS.get(level, logging.DEBUG)
            *complete, self._partial = (self._partial + text).split("\n")
            # Progress dots come without a line end for as long as a load takes.
            self._partial = self._partial[-4096:]
            lines = [(self._level, line.strip()) for line in complete if line.strip(" .\t\r")]
            self._lines.extend(lines)
            self._sizes.extend(line for _, line in lines if _SIZE_MARK in line)
        for number, line in lines:
            self._logger.log(number, "%s", line)

    def _on_abort(self, text: bytes | None) -> None:
        # The process dies when this returns: straight to the descriptor, past every lock and
        # buffer.
        with contextlib.suppress(Exception):
            message = _SOURCE_PATH.sub(
                "", (text or b"no message").decode("utf-8", "replace")
            ).strip()
            told = f"llama.cpp aborted the process: {message}"
            os.write(2, f"{told}\n".encode())
            self.last_words(told)
