"""Standard output: characters that it lacks, and what becomes of a command whose output nobody takes any more."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator

from server.core.errors import OnegpuError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_ASCII = {"×": "x", "…": "...", "→": "->", "≥": ">="}
"""For the characters of our own texts; all others become escapes."""


def open_what_was_closed() -> None:
    """Let standard streams that the command was started without (`>&-`) lead nowhere.

    Otherwise the first files and sockets get their numbers, and what is printed goes into them.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def speak_its_encoding() -> None:
    """Have standard output write what its encoding lacks in ASCII, instead of ending the command."""
    codecs.register_error("onegpu", _in_ascii)
    if isinstance(sys.stdout, io.TextIOWrapper):  # tests and embedders put in others
        sys.stdout.reconfigure(errors="onegpu")


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start]
    written = _IN_ASCII.get(lacking) or lacking.encode("ascii", "backslashreplace").decode("ascii")
    return written, error.start + 1


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Run what writes to standard output. Raises `OnegpuError` when the disk that takes it is full.

    A reader that has enough, such as `| head`, ends the command without a word, with status 1.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _forget()
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _forget()
        raise OnegpuError(f"The output cannot be written: {error.strerror}.") from error


def _forget() -> None:
    """Have what is still to be written go nowhere: the interpreter would fail on it at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
