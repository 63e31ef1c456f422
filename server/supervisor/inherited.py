"""What a worker has from its supervisor, and what it owes it."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from typing import Self

from server.supervisor.page import Page

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Numbers of what a worker inherits; the hidden flag `--worker` carries them."""

    listener: int
    page: int
    parent: int
    """A pipe that ends when the supervisor does."""
    configuration: int
    """A file with the configuration that a worker served with last."""

    def __str__(self) -> str:
        return f"{self.listener},{self.page},{self.parent},{self.configuration}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote. Raises `ValueError`."""
        return cls(*(int(part) for part in text.split(",")))


class Inherited:
    """The worker's end."""

    def __init__(self, numbers: Descriptors) -> None:
        """Take the descriptors over; children of this process do not get them."""
        for number in (numbers.listener, numbers.page, numbers.parent, numbers.configuration):
            os.set_inheritable(number, False)
        self.listener = socket.socket(fileno=numbers.listener)
        self.page = Page(numbers.page)
        self._configuration = numbers.configuration
        # Until the event loop takes it; the supervisor sends none before that.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Where native code crashed. Other threads run on; to read their stacks can crash once more,
        # and that signal would be told in place of the first one.
        faulthandler.enable(all_threads=False)
        faulthandler.register(signal.SIGQUIT)  # where it stands still, before it is ended for that
        # In a process group of its own it is a background job, which some terminals forbid to write.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        _end_with(numbers.parent)

    @property
    def configuration(self) -> bytes:
        """What `keep` was given last, by whatever worker; empty: nothing."""
        return os.pread(self._configuration, os.fstat(self._configuration).st_size, 0)

    def keep(self, configuration: bytes) -> None:
        """Keep the configuration that one can serve with, for the workers after this one."""
        os.ftruncate(self._configuration, 0)
        os.pwrite(self._configuration, configuration, 0)


def _end_with(parent: int) -> None:
    """See to it that this process does not outlive its supervisor, whatever either is doing."""
    if sys.platform == "linux":
        # The kernel does it even where no thread of this process gets to run any more.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait() -> None:
        os.read(parent, 1)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
