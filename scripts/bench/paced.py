"""A whole server over an engine that computes nothing: a decode call takes a fixed time.

Everything but llama.cpp is the real thing: HTTP, keys, the line, scheduler, slots, streams. Run as a
program with the configuration in ONEGPU_ variables and PACED_STEP_MS, PACED_ROW_MS.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import uvloop

from server.assembly.lifecycle import Lifecycle
from server.assembly.parts import build
from server.core.clock import SystemClock
from server.core.request import GenerationRequest
from server.engine.inprocess import InProcessEngine
from server.engine.interface import Backend, HostState, ModelInfo
from server.engine.limits import SchedulerLimits
from server.engine.plan import Foreseen, Rows, Sample, StepPlan, StepResult
from server.gateway.host import HostSpec
from server.gateway.prompter import Prompter
from server.llama.grammar import LlamaGrammars
from server.settings import load
from server.supervisor.listening import listen

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


class Bytes:
    """A token per byte."""

    n_vocab = 257
    pieces: Sequence[bytes] = [bytes([value]) for value in range(256)] + [b""]
    eog = frozenset({256})
    control_tokens: Mapping[str, int] = {}
    marker_tokens: Mapping[str, int] = {}
    bos_text = ""
    eos_text = ""

    @cached_property
    def grammars(self) -> LlamaGrammars:
        """What compiles grammars over it."""
        return LlamaGrammars(self)

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Return the bytes."""
        del add_special, parse_special
        return list(text.encode())

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """Return the bytes again."""
        del special
        return b"".join(self.pieces[token] for token in tokens)


class Paced:
    """Sleeps for a step and for each prompt row, then says `a`."""

    info = ModelInfo(
        path="paced",
        architecture="paced",
        description="nothing",
        size_bytes=0,
        n_params=0,
        n_vocab=257,
        n_ctx_train=1 << 20,
        chat_template=TEMPLATE,
        fingerprint="fp_paced",
        created=0,
        shares_cells=True,
    )
    tokenizer = Bytes()

    def __init__(self, step: float, row: float) -> None:
        """Seconds of a decode call, and of each prompt row in it."""
        self._step, self._row = step, row

    def truncate(self, slot: int, keep: int) -> None:
        """Do nothing."""

    def copy(self, source: int, slot: int, cells: int) -> None:
        """Do nothing."""

    def state_bytes(self, slot: int) -> int:
        """Return 0: nothing is there to be saved."""
        del slot
        return 0

    def save(self, slot: int, cells: int) -> HostState:
        """Refuse: `info` says that nothing can be saved."""
        del slot, cells
        raise RuntimeError

    def restore(self, slot: int, state: HostState) -> int:
        """Restore nothing."""
        del slot, state
        return 0

    def open(self, slot: int, request: GenerationRequest) -> None:
        """Do nothing."""

    def close(self, slot: int) -> None:
        """Do nothing."""

    def set_aside(self, slot: int, request_id: str) -> None:
        """Do nothing."""

    def forget(self, request_id: str) -> None:
        """Do nothing."""

    def decode(self, plan: StepPlan) -> StepResult:
        """Take the time that computing would."""
        time.sleep(self._step + plan.prefill_rows * self._row)
        return StepResult(samples=[[Sample(97)] for row in plan.rows if row.outputs])

    def foresee(self, rows: list[Rows]) -> Foreseen:
        """Refuse: `info` says that there is no draft model."""
        del rows
        raise RuntimeError

    def shutdown(self) -> None:
        """Do nothing."""


def engine_maker(
    spec: HostSpec, prompters: Sequence[Prompter], step: float, row: float
) -> Callable[[], InProcessEngine]:
    """Return what makes the engine of a host."""

    def loaded(_progress: Callable[[float], None]) -> Backend:
        backend = Paced(step, row)
        for prompter in prompters:
            prompter.bind(backend.info, backend.tokenizer)
        return backend

    limits = SchedulerLimits(slots=spec.slots, n_ctx=spec.n_ctx, kv_cells=spec.kv_cells)
    return lambda: InProcessEngine(loaded, limits, SystemClock())


def main() -> int:
    """Serve until a signal."""
    settings = load(None, environ=os.environ).settings
    step = float(os.environ.get("PACED_STEP_MS", "10")) / 1000
    row = float(os.environ.get("PACED_ROW_MS", "0.05")) / 1000
    parts = build(settings, SystemClock(), Path)
    for host in parts.hosts.hosts:
        prompters = [one.prompter for one in parts.router.served if one.host is host]
        host.spec = replace(host.spec, make=engine_maker(host.spec, prompters, step, row))
    listener = listen(settings.server.host, settings.server.port)
    sys.setswitchinterval(0.0005)
    return uvloop.run(Lifecycle(settings, parts, listener).run())


if __name__ == "__main__":
    raise SystemExit(main())
