"""A signal that is taken while the main thread waits in C is not lost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from server.cli.chat.signals import prompt_signals


@pytest.mark.parametrize(
    ("number", "raised"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, SystemExit),
        (signal.SIGHUP, SystemExit),
    ],
)
def test_a_signal_that_does_not_wake_the_main_thread_comes_again(number, raised):
    before = signal.getsignal(number)
    reading, writing = os.pipe()
    call = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")

    def take_the_signal() -> None:
        """As one that arrives just before the wait: Python learns of it, the wait goes on."""
        while call.read_text(encoding="ascii").split()[1:2] != [hex(reading)]:
            pass
        signal.pthread_kill(threading.get_ident(), number)

    other = threading.Thread(target=take_the_signal)
    with prompt_signals():
        other.start()
        with pytest.raises(raised) as caught:
            os.read(reading, 1)

    other.join()
    os.close(reading)
    os.close(writing)
    assert signal.getsignal(number) is before
    if raised is SystemExit:
        assert caught.value.code == 128 + number


def test_a_signal_that_is_seen_at_once_is_not_sent_again():
    seen = 0
    with prompt_signals():
        for _ in range(3):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                seen += 1
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)

    assert seen == 3
