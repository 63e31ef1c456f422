"""What tests read of others' source distributions; `make install-dev` puts it into .venv/share.

The published chat templates come with llama.cpp, the JSON Schema Test Suite with jsonschema: both are
in source distributions that the locks pin with their hashes. Standard library only, and no syntax
newer than Python 3.7, as in install.py.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from install_output import Failed, Reporter, run_logged

MARK = "onegpu-source.txt"
# pip looks at a source distribution's metadata even if it is only to download it, with the build
# backend that the distribution names. This stands in for the backend: nothing of theirs is run.
BACKEND = """\
import pathlib, re, shutil


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    facts = pathlib.Path("PKG-INFO").read_text(encoding="utf-8")
    name, version = (re.search("^%s: (.*)$" % key, facts, re.M)[1] for key in ("Name", "Version"))
    made = pathlib.Path(folder, "%s-%s.dist-info" % (name.replace("-", "_"), version))
    made.mkdir()
    shutil.copy("PKG-INFO", made / "METADATA")
    return made.name
"""
BACKENDS = ("hatchling", "scikit_build_core")


class TestData(NamedTuple):
    """A part of a pinned source distribution."""

    folder: str
    """Its name in .venv/share."""
    package: str
    lock: str
    part: str
    """The folder within the distribution; what is below it is kept with its paths."""
    kept: tuple[str, ...]
    """How the paths of what is kept begin or end."""


TEST_DATA = (
    TestData(
        "chat-templates",
        "llama-cpp-python",
        "requirements.lock",
        "vendor/llama.cpp/models/templates",
        (".jinja",),
    ),
    TestData(
        "json-schema-test-suite",
        "jsonschema",
        "requirements-dev.lock",
        "json",
        ("tests/", "remotes/", "LICENSE"),
    ),
)


def pinned_requirement(package: str, lock: str, lock_name: str) -> str:
    """The lines of `lock` that pin `package`, with their hashes."""
    pattern = rf"^{re.escape(package)}(?:\[[\w,-]+\])?==.*\n(?:[ \t]+--hash=.*\n)+"
    found = re.search(pattern, lock, flags=re.MULTILINE)
    if found is None:
        raise Failed(f"{lock_name} does not pin {package}: run `make lock`.")
    return found.group(0)


def fetch_test_data(reporter: Reporter, root: Path, venv: Path) -> None:
    """Bring .venv/share up to date with the locks. What cannot be downloaded is said, no more."""
    for data in TEST_DATA:
        lock = (root / data.lock).read_text(encoding="utf-8")
        pinned = pinned_requirement(data.package, lock, data.lock)
        there = venv / "share" / data.folder
        if read(there / MARK) == pinned:
            continue
        try:
            with tempfile.TemporaryDirectory(dir=str(venv)) as scratch:
                archive = download(reporter, data, pinned, Path(scratch), venv)
                extract(archive, data, Path(scratch) / data.folder)
                (Path(scratch) / data.folder / MARK).write_text(pinned, encoding="utf-8")
                there.parent.mkdir(exist_ok=True)
                shutil.rmtree(str(there), ignore_errors=True)
                (Path(scratch) / data.folder).replace(there)
        except Failed as failure:
            reporter.note(
                f"{failure}\n\nTests that need {there} are skipped. Run `make install-dev` again "
                "when the package index can be reached."
            )


def read(path: Path) -> str:
    """Read a text; empty when it is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def download(reporter: Reporter, data: TestData, pinned: str, scratch: Path, venv: Path) -> Path:
    """Download the source distribution, of which pip checks the hash. Raises Failed."""
    for name in BACKENDS:
        (scratch / "backend" / name).mkdir(parents=True)
        (scratch / "backend" / name / "__init__.py").touch()
        (scratch / "backend" / name / "build.py").write_text(BACKEND, encoding="utf-8")
    wanted = scratch / "wanted.lock"
    wanted.write_text(pinned, encoding="utf-8")
    command = [str(venv / "bin" / "python"), "-m", "pip", "download", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "1", "--require-hashes", "--no-deps"]
    command += ["--no-binary", ":all:", "--no-build-isolation"]
    command += ["--requirement", str(wanted), "--dest", str(scratch / "got")]
    environment = dict(os.environ, PYTHONPATH=str(scratch / "backend"))
    title = f"Test data ({data.folder})"
    log = venv / "install.log"
    run_logged(reporter, title, command, log=log, cwd=scratch, environment=environment)
    return next((scratch / "got").iterdir())


def extract(archive: Path, data: TestData, folder: Path) -> None:
    """Write the files that are kept below `folder`. Raises Failed if there are none."""
    folder.mkdir()
    with tarfile.open(str(archive)) as opened:
        for member in opened:
            path = kept_as(member.name, data)
            source = opened.extractfile(member) if path and member.isfile() else None
            if source is not None:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                with source, (folder / path).open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    if not any(folder.iterdir()):
        raise Failed(f"{archive.name} has nothing below {data.part}.")


def kept_as(name: str, data: TestData) -> str:
    """Where a member of the archive belongs below the folder; empty for one that is not kept."""
    parts = PurePosixPath(name).parts[1:]
    begin = PurePosixPath(data.part).parts
    if parts[: len(begin)] != begin or ".." in parts:
        return ""
    path = "/".join(parts[len(begin) :])
    return path if path.startswith(data.kept) or path.endswith(data.kept) else ""
