"""SIGHUP means "read the configuration again", except when it says that the terminal is gone."""

from __future__ import annotations

import os
import signal


class Terminal:
    """The controlling terminal that this process was started on, if there was one."""

    def __init__(self) -> None:
        # nohup: started to outlive its terminal.
        self._had = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _is_there()

    def gone(self) -> bool:
        """Whether there was a terminal and there is none any more."""
        return self._had and not _is_there()


def _is_there() -> bool:
    try:
        descriptor = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    os.close(descriptor)
    return True
