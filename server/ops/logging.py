"""Logs as text for people or as JSON for collectors. Prompts, answers and keys are never logged."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

_KEY = re.compile(r"(ogk_[0-9A-Za-z]{10})_[0-9A-Za-z]+")
ACCESS = "onegpu.access"
"""The logger that has one line per request; `facts` of its records are tokens and times."""


class TextFormatter(logging.Formatter):
    """Time, level, logger, message; then the request id and the facts as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and the traceback if there is one."""
        line = f"{_time(record)} {record.levelname.lower()} {record.name}: {record.getMessage()}"
        line = " ".join([line, *(f"{name}={value}" for name, value in _extras(record).items())])
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return without_secrets(line)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, whatever the message holds."""
        told: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(told, ensure_ascii=False, default=str))


def configure_logging(
    level: str = "info",
    form: Literal["text", "json"] = "text",
    *,
    access_log: bool = True,
    stream: TextIO | None = None,
) -> None:
    """Send all logs to `stream` (standard error). Replaces what was configured before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger(ACCESS).setLevel(logging.NOTSET if access_log else logging.WARNING)
    # They report every connection and chunk; at INFO and below that is noise, or worse: content.
    for name in ("asyncio", "sse_starlette", "uvicorn", "httpx", "httpcore", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def without_secrets(text: str) -> str:
    """Return `text` with API keys cut down to their public part.

    Clients put keys where they do not belong: paths, names of models, fields that are told of.
    """
    return _KEY.sub(r"\1_...", text)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    extras: dict[str, object] = {}
    if request_id := getattr(record, "request_id", None):
        extras["request_id"] = request_id
    facts = getattr(record, "facts", None)
    if isinstance(facts, Mapping):
        extras |= facts
    return extras
