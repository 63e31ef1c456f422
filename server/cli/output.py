"""What becomes of a command whose output nobody takes any more."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from server.core.errors import OnegpuError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
