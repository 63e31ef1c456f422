"""The systemd unit: sound, and true to what the supervisor does."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.cli.main import FAILURE
from server.cli.parsing import USAGE
from server.settings import Settings

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "scripts" / "systemd" / "onegpu.service"
VERIFY = shutil.which("systemd-analyze")


def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT, encoding="utf-8")
    return unit["Service"]


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    if VERIFY is None and "CI" not in os.environ:
        pytest.skip("systemd-analyze is missing (Debian: apt-get install systemd)")
    assert VERIFY is not None, ".ci/run installs systemd, whose systemd-analyze checks the unit"
    text = UNIT.read_text(encoding="utf-8")
    command = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)
    assert command is not None
    there = tmp_path / UNIT.name
    there.write_text(text.replace(command[1], "/bin/true"), encoding="utf-8")

    done = subprocess.run(
        [VERIFY, "verify", str(there)], capture_output=True, text=True, check=False
    )

    # Unknown keys are told, and are no failure.
    assert (done.returncode, done.stderr) == (0, "")


def test_it_says_what_the_supervisor_does() -> None:
    told = service()
    assert told["Type"] == "notify"
    assert told["NotifyAccess"] == "main", "the worker is not to be heard"
    assert told["ExecReload"].endswith("kill -HUP $MAINPID")
    assert told["TimeoutStartSec"] == "infinity", "20 GB may have to be downloaded"
    assert int(told["TimeoutStopSec"]) >= Settings().server.shutdown_grace + 35
    assert told["OOMPolicy"] == "continue", "the supervisor outlives its worker"
    assert told["RestartPreventExitStatus"] == str(USAGE)
    assert str(FAILURE) not in told["SuccessExitStatus"].split()
    assert told["NoNewPrivileges"] == "yes"
    assert told["ExecStartPre"].startswith("-+"), (
        "with all privileges, and not at all without a card"
    )
    assert int(told["LimitNOFILE"]) > Settings().server.max_connections + 256


def test_the_documents_name_the_places_that_it_uses() -> None:
    text = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    told = service()
    binary, config = told["ExecStart"].split()[0], told["ExecStart"].split()[-1]
    for place in (binary, config, told["WorkingDirectory"], told["Environment"]):
        assert place in text, place
