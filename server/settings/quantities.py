"""Durations (`30s`, `5m`) and sizes (`10MB`, `24GiB`) as settings are written."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_DURATION_FORM = "must be a duration such as 500ms, 30s, 5m or 2h (a plain number is seconds)"
_SIZE_FORM = "must be a size such as 500KB, 10MB or 24GiB (a plain number is bytes)"


def parse_duration(value: object) -> float:
    """Seconds in `value`: a number of seconds or text with a unit. Raises ValueError."""
    number, unit = _split(value, _DURATION_FORM)
    if unit not in _SECONDS:
        raise ValueError(_DURATION_FORM)
    return number * _SECONDS[unit]


def parse_size(value: object) -> int:
    """Bytes in `value`: a number of bytes or text with a unit. Raises ValueError."""
    number, unit = _split(value, _SIZE_FORM)
    factor = _BYTES.get(unit.lower())
    if factor is None or number * factor != int(number * factor):
        raise ValueError(_SIZE_FORM)
    return int(number * factor)


def format_duration(seconds: float) -> str:
    """`seconds` in the largest unit that keeps it whole: 300 is `5m`."""
    for unit in ("h", "m", "s"):
        count = seconds / _SECONDS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    milliseconds = f"{seconds * 1000:.6f}".rstrip("0").rstrip(".")
    return f"{milliseconds}ms" if seconds else "0s"


def format_size(size: int | Literal["auto"]) -> str:
    """`size` bytes in the largest unit that keeps it whole: 10000000 is `10MB`."""
    if size == "auto":
        return size
    for unit in ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "KB"):
        factor = _BYTES[unit.lower()]
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _split(value: object, form: str) -> tuple[float, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(form)  # noqa: TRY004 - pydantic turns only ValueError into a message
    if isinstance(value, str):
        found = _QUANTITY.fullmatch(value)
        if found is None:
            raise ValueError(form)
        value, unit = float(found[1]), found[2]
    else:
        value, unit = float(value), ""
    if value < 0 or not math.isfinite(value):
        raise ValueError(form)
    return value, unit


def _path(value: object) -> Path:
    if not isinstance(value, Path) and (not isinstance(value, str) or not value.strip()):
        raise ValueError("must be a path")
    # Without a home directory `~` stays: whoever needs the path then says what to do.
    return Path(os.path.expanduser(value))  # noqa: PTH111 - Path.expanduser raises there


class Kind:
    """Marks an annotated type for display: `duration` or `size`."""

    def __init__(self, name: str) -> None:
        self.name = name


def _auto_or_size(value: object) -> object:
    if value == "auto":
        return value
    try:
        return parse_size(value)
    except ValueError:
        raise ValueError("must be auto, 0 or a size such as 500MB or 8GiB") from None


Duration = Annotated[float, BeforeValidator(parse_duration), Kind("duration")]
"""Seconds."""
Size = Annotated[int, BeforeValidator(parse_size), Kind("size")]
"""Bytes."""
AutoSize = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_size), Kind("size")]
"""Bytes, or what follows from the machine."""
FilePath = Annotated[Path, BeforeValidator(_path)]
"""A path, `~` expanded, relative ones to the working directory."""
