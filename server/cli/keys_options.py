"""What `onegpu keys create` can be told, and how it is read."""

from __future__ import annotations

import argparse
import datetime as dt
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.store.keys import KeyLimits

UNLIMITED = "unlimited"
_LARGEST = 2**53
_LONGEST_OVERLAP = 100 * 365.25 * 86400
_LAST = 253_402_300_799
"""The end of the year 9999 in Unix seconds: what calendars can show."""


def add_limit_flags(parser: argparse.ArgumentParser) -> None:
    """Add what a key may do. What is left out, the server's settings say."""
    lifted = f", or {UNLIMITED}"
    count, free = _whole(least=1), _whole(least=1, lifted=True)
    for flag, metavar, read, text in (
        ("--rpm", "N", free, "requests per minute" + lifted),
        ("--burst", "N", count, "requests that may come at once"),
        ("--tpm", "TOKENS", free, "tokens per minute, prompt and output" + lifted),
        ("--max-concurrent", "N", free, "requests at a time" + lifted),
        ("--max-context", "TOKENS", count, "most tokens of a request, prompt and output"),
        ("--max-tokens", "TOKENS", count, "most output tokens of a request"),
        ("--weight", "X", _weight, "share among waiting keys of its class [1]"),
        ("--models", "A,B", _names, "served names it may use [all]"),
        ("--expires", "WHEN", expiry, "when it ends: 30d, 12h, or a day such as 2030-01-31"),
    ):
        parser.add_argument(flag, metavar=metavar, type=read, help=text)
    parser.add_argument(
        "--priority",
        choices=("interactive", "normal", "batch"),
        help="highest class of its requests: interactive, normal or batch",
    )
    parser.add_argument(
        "--admin", action="store_true", help="may also change the server, such as load models"
    )


def limits_of(options: argparse.Namespace) -> KeyLimits:
    """Return the limits that the flags say."""
    from server.store.keys import KeyLimits

    return KeyLimits(
        rpm=options.rpm,
        burst=options.burst,
        tpm=options.tpm,
        max_concurrent=options.max_concurrent,
        max_context=options.max_context,
        max_tokens=options.max_tokens,
        priority=options.priority,
        weight=1.0 if options.weight is None else options.weight,
        models=options.models,
    )


def described(limits: KeyLimits) -> str:
    """Say what differs from the server's own limits, as flags would; `-` if nothing does."""
    told: list[str] = []
    for name in ("rpm", "burst", "tpm", "max_concurrent", "max_context", "max_tokens"):
        value = getattr(limits, name)
        if value is not None:
            told.append(f"{name.replace('_', '-')} {value or UNLIMITED}")
    if limits.priority is not None:
        told.append(limits.priority)
    if limits.weight != 1:
        told.append(f"weight {limits.weight:g}")
    if limits.models is not None:
        told.append(f"models {','.join(limits.models)}")
    return " ".join(told) or "-"


def expiry(text: str) -> int:
    """Return the Unix second at which a key ends: after a duration, or when a day (UTC) begins."""
    seconds = time.time() + duration(text) if _is_duration(text) else _moment(text)
    if seconds <= time.time():
        raise argparse.ArgumentTypeError(f"{text} is over already")
    if seconds > _LAST:
        raise argparse.ArgumentTypeError(f"{text} is beyond the year 9999; leave it out instead")
    return int(seconds)


def duration(text: str) -> float:
    """Return seconds."""
    from server.settings.quantities import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def overlap(text: str) -> float:
    """Return the seconds for which an old secret counts on."""
    seconds = duration(text)
    if seconds > _LONGEST_OVERLAP:
        raise argparse.ArgumentTypeError("must be 100 years or less")
    return seconds


def _is_duration(text: str) -> bool:
    return "-" not in text


def _moment(text: str) -> float:
    try:
        moment = dt.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        return moment.timestamp()
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a duration (30d, 12h) nor a day (2030-01-31)"
        ) from error


def _whole(*, least: int, lifted: bool = False) -> Callable[[str], Any]:
    form = f"a whole number, {least} or more" + (f", or {UNLIMITED}" if lifted else "")

    def read(text: str) -> int:
        if lifted and text == UNLIMITED:
            return 0
        if not (text.isascii() and text.isdecimal() and least <= int(text[:20]) <= _LARGEST):
            raise argparse.ArgumentTypeError(f"must be {form}, not {text!r}")
        return int(text)

    return read


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0.001 <= weight <= 1000:
        raise argparse.ArgumentTypeError(f"must be a number from 0.001 to 1000, not {text!r}")
    return weight


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names with commas between them, not {text!r}")
    return tuple(dict.fromkeys(names))
