"""Signals reach the chat also while it waits for a line; ending ones run its `finally`s."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

_LOOK_AFTER = 0.2
_SAME = 0.05
"""Seconds within which a handler's run and the news of its signal are taken to be one event."""
_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def prompt_signals() -> Iterator[None]:
    """Make SIGINT a KeyboardInterrupt, and SIGTERM and SIGHUP a SystemExit(128 + number).

    A server of one's own must go with the chat, so these two may not end the program on the spot.
    Python runs a handler when the main thread comes back from C: a signal that arrives just before
    line editing begins to wait for a key would wait with it. Such a one is sent again.
    """
    main = threading.get_ident()
    seen: dict[int, float] = {}
    done = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        seen[number] = time.monotonic()
        if number in _ENDING:
            raise SystemExit(128 + number)
        signal.default_int_handler(number, frame)

    def send_again() -> None:
        for byte in iter(lambda: inner.recv(1), b""):
            number, told = byte[0], time.monotonic()
            if number not in before:
                continue
            while not done.wait(_LOOK_AFTER) and seen.get(number, 0.0) < told - _SAME:
                signal.pthread_kill(main, number)

    inner, outer = socket.socketpair()
    outer.setblocking(False)
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, *_ENDING)}
    wakeup = signal.set_wakeup_fd(outer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=send_again, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        outer.close()
        watcher.join()
        inner.close()
