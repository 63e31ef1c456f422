"""The chat templates that models are published with, where this machine has them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "share" / "chat-templates"


def published_template(name: str) -> str:
    """The template's source. Skips the test that asks where `make install-dev` had no network."""
    path = FOLDER / f"{name}.jinja"
    if not path.exists():
        explain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        explain(f"no {path}: run `make install-dev` with a network")
    return path.read_text(encoding="utf-8")
