"""What tests of downloads share: a pull with everything handed to it, and what it told."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.catalog.catalogue_models import builtin_catalogue
from server.catalog.download import pull
from server.catalog.download_choice import Chosen, QuantChooser
from server.catalog.download_files import Machine
from server.catalog.hub_files import Candidate
from server.catalog.library import Library
from tests.catalog.hub_server import HubServer

PLENTY = 1 << 40


def blob(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@dataclass
class Told:
    """A `Progress` that remembers."""

    lines: list[str] = field(default_factory=list)
    phases: list[tuple[str, int, int]] = field(default_factory=list)
    done: int = 0
    open: bool = False

    def say(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, label: str, *, total: int, done: int) -> None:
        assert not self.open
        self.open = True
        self.phases.append((label, total, done))
        self.done = done

    def advance(self, count: int) -> None:
        assert self.open
        self.done += count

    def end(self) -> None:
        self.open = False

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def never(_: Sequence[Candidate]) -> Chosen:
    raise AssertionError("a named quantization leaves nothing to choose")


def largest(found: Sequence[Candidate]) -> Chosen:
    return Chosen(found[0], f"{found[0].quant} is the largest")


class Pulls:
    """Pulls into one folder from one hub."""

    def __init__(self, hub: HubServer, folder: Path, **stores: Any) -> None:
        self.hub = hub
        self.library = Library(folder, builtin_catalogue(), **stores)
        self.waits: list[float] = []
        self.sleep: Callable[[float], None] = self.waits.append
        self.told = Told()
        self.free = PLENTY

    def __call__(
        self,
        text: str,
        *,
        chooser: QuantChooser = never,
        told: Told | None = None,
        **options: Any,
    ) -> Path:
        self.told = told or Told()
        machine = Machine(free_bytes=lambda _: self.free, sleep=self.sleep)
        options.setdefault("endpoint", self.hub.endpoint)
        return pull(
            self.library.catalogue.parse(text),
            self.library,
            quant_chooser=chooser,
            progress=self.told,
            machine=machine,
            **options,
        )

    def find(self, text: str) -> Path | None:
        return self.library.find(self.library.catalogue.parse(text))
