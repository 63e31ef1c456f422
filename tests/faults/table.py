"""The fault table of ARCHITECTURE.md, read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TEXT = (Path(__file__).resolve().parents[2] / "ARCHITECTURE.md").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table, without its prose."""

    request: str
    neighbours: str
    later: str
    live: str
    counted: str


def rows() -> dict[str, Row]:
    section = TEXT.split("## Faults\n", 1)[1].split("\n## ", 1)[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    return {
        name.strip("`"): Row(*(re.sub(r"`(.*)`", r"\1", cell) for cell in rest))
        for name, _, *rest in cells
    }


ROWS = rows()
