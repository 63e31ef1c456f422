"""docs/modelfiles.md has every instruction, parameter and function that the code knows, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from server.catalog.modelfile import find_modelfiles, parse_modelfile
from server.catalog.modelfile.parameters import INSTEAD, REFUSED, SAMPLING
from server.catalog.modelfile.syntax import INSTRUCTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "modelfiles.md").read_text(encoding="utf-8")
OWN = {
    "num_ctx",
    "num_predict",
    "num_gpu",
    "timeout",
    "keep_alive",
    "overflow",
    "pin",
    "adapter_scale",
    "stop",
}


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def names_of(table: str) -> set[str]:
    """What stands in code marks in the first column."""
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_instruction_is_explained():
    assert names_of(section("Syntax")) == set(INSTRUCTIONS)


def test_every_parameter_is_explained():
    parameters = section("Parameters")

    assert names_of(parameters) == OWN | set(SAMPLING)
    ignored = parameters.partition("Taken without effect")[2].partition("Refused")[0]
    assert set(re.findall(r"`(\w+)`", ignored)) == set(INSTEAD)
    refused = parameters.partition("Refused")[2]
    assert set(re.findall(r"`(\w+)`", refused)) <= set(REFUSED)


def test_every_parameter_of_its_own_is_read():
    lines = {
        "timeout": "5m",
        "keep_alive": "5m",
        "overflow": "refuse",
        "pin": "true",
        "num_gpu": "all",
        "stop": "a",
    }

    for name in OWN:
        assert parse_modelfile(f"FROM m\nPARAMETER {name} {lines.get(name, 64)}", origin="M").given


def test_every_shipped_file_is_listed():
    shipped = {f"modelfiles/{path.name}" for path in find_modelfiles(ROOT / "modelfiles").values()}

    assert names_of(PAGE.partition("| shipped file")[2].partition("\n\n")[0]) == shipped
