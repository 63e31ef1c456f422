"""llama.cpp's log lines and its last words, forwarded to Python's logging."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import logging
import os
import threading
from pathlib import Path

_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_ABORT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)

_CONTINUATION = 5
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}
"""`ggml_log_level` to Python's. llama.cpp's "info" is a page per load and its warnings are routine: one step down."""


class NativeLog:
    """Collects lines from `llama_log_set`. Keeps its callbacks alive: C must never call a freed one."""

    def __init__(self, keep: int = 200) -> None:
        """Remember the last `keep` lines."""
        self._logger = logging.getLogger("onegpu.llama_cpp")
        self._lock = threading.Lock()
        self._lines: collections.deque[tuple[int, str]] = collections.deque(maxlen=keep)
        self._partial = ""
        self._level = logging.DEBUG
        self._log_callback = _LOG_CALLBACK(self._on_log)
        self._abort_callback = _ABORT_CALLBACK(self._on_abort)

    def install(self, llama: ctypes.CDLL, folder: str) -> None:
        """Point llama.cpp's log at this object, and ggml's abort message where libggml-base is found in `folder`."""
        llama.llama_log_set.restype = None
        llama.llama_log_set.argtypes = [_LOG_CALLBACK, ctypes.c_void_p]
        llama.llama_log_set(self._log_callback, None)
        for base in sorted(Path(folder).glob("libggml-base.*")):
            with contextlib.suppress(OSError, AttributeError):
                ggml = ctypes.CDLL(str(base))
                ggml.ggml_set_abort_callback.restype = ctypes.c_void_p
                ggml.ggml_set_abort_callback.argtypes = [_ABORT_CALLBACK]
                ggml.ggml_set_abort_callback(self._abort_callback)
                return

    def tail(self, count: int = 3, *, errors_only: bool = False) -> str:
        """Return the last `count` lines, joined by "; "; with `errors_only` those that llama.cpp called errors."""
        with self._lock:
            lines = [text for level, text in self._lines if level >= logging.ERROR or not errors_only]
        return "; ".join(lines[-count:])

    def clear(self) -> None:
        """Forget the lines, so that `tail` speaks of what comes next."""
        with self._lock:
            self._lines.clear()

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
        for number, line in lines:
            self._logger.log(number, "%s", line)

    def _on_abort(self, text: bytes | None) -> None:
        # The process dies when this returns: straight to the descriptor, past every lock and buffer.
        with contextlib.suppress(Exception):
            os.write(2, b"llama.cpp aborted the process: " + (text or b"no message").strip() + b"\n")
