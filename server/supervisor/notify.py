"""systemd's notifications (sd_notify(3)): ready, status, reloading, stopping, alive."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What systemd says to this process alone; a worker must not be told."""

_PATIENCE = 5.0
"""Seconds for systemd to take a line; it may be busy, at boot above all."""


class Notifier:
    """Sends lines to the socket that systemd names; does nothing where there is none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """`environ`: where `VARIABLES` are looked for."""
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._status = ""
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        meant = self._address and usec.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog_every: float | None = int(usec) / 2e6 if meant and int(usec) else None
        """Seconds between two `alive`s; None: nobody waits for them."""

    def ready(self, status: str) -> None:
        """Tell that requests are answered, or that a reload is over."""
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Tell what goes on, in one line; the same line is told once."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def reloading(self) -> None:
        """Tell that the configuration is being read; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Tell that the end has begun."""
        self._send("STOPPING=1", "STATUS=Finishing what runs")

    def alive(self) -> None:
        """Tell that this process still turns."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # `@` stands for the zero byte that begins an abstract address.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # Whoever listens may be gone; that must not stop a server.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            # A queue that is full for a moment must not cost a READY, which comes once.
            end.settimeout(_PATIENCE)
            end.connect(address)
            end.send("\n".join(line.replace("\n", " ") for line in lines).encode())
