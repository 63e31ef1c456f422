"""Kills a pull, or a removal, at each of its steps on disk, and tells what is wrong afterwards.

    python -m tests.catalog.killing ENDPOINT FOLDER     one line for each defect, then `N steps`

A process of its own, with one thread, so that it may fork.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from server.core.errors import ModelFileError
from tests.catalog.hub_downloads import Pulls

REF = "hf:o/split:Q8_0"
NAMES = tuple(f"s-Q8_0-0000{part}-of-00003.gguf" for part in (1, 2, 3))
SIZE = 70_000
_STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "fcntl.flock")


class _Hub:
    """What `Pulls` needs of a hub that another process runs."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint


def _pull(pulls: Pulls) -> None:
    pulls(REF)


def _remove(pulls: Pulls) -> None:
    pulls.library.remove(pulls.library.named(REF)[0])


def _killed_at(step: int, folder: Path, action: Callable[[], None]) -> bool:
    """Run `action` in a child that dies at a step; False when it ended before."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    count = 0

    def count_steps(event: str, details: tuple[object, ...]) -> None:
        nonlocal count
        if event in _STEPS and (isinstance(details[0], int) or str(folder) in str(details[0])):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_steps)
    action()
    os._exit(0)


def _defects(pulls: Pulls, folder: Path, before: dict[str, bytes] | None) -> Iterator[str]:
    files = [folder / "o" / "split" / name for name in NAMES]
    there = {file.name: file.read_bytes() for file in files if file.is_file()}
    sound = before is None or there == before
    if pulls.find(REF) is not None and not (len(there) == len(NAMES) and sound):
        yield "is found, but is not whole"
    for file in files:
        try:
            if pulls.find(str(file)) is not None and len(there) < len(NAMES):
                yield f"{file.name} is served by its path"
        except ModelFileError:
            continue
    pulls.library.entries()


def main() -> None:
    hub, folder = _Hub(sys.argv[1]), Path(sys.argv[2])
    whole: dict[str, bytes] | None = None
    for action in (_pull, _remove):
        step, killed = 0, True
        while killed:
            step += 1
            shutil.rmtree(folder, ignore_errors=True)
            pulls = Pulls(hub, folder)  # type: ignore[arg-type]
            if action is _remove:
                pulls(REF)
            killed = _killed_at(step, folder, lambda: action(pulls))  # noqa: B023 - runs at once
            for defect in _defects(pulls, folder, whole):
                print(f"{action.__name__}, step {step}: {defect}")
            path = pulls(REF)
            data = {name: path.with_name(name).read_bytes() for name in NAMES}
            whole = whole or data
            if data != whole or list(folder.rglob("*.part")):
                print(f"{action.__name__}, step {step}: is not mended by the same command")
        print(f"{step - 1} steps")


if __name__ == "__main__":
    main()
