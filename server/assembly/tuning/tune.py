"""`onegpu tune` without its words: the model's context, the session, the file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from server.assembly.grouping import grouped
from server.assembly.machine import machine_memory, refuse_cpu_build
from server.assembly.sizing import Sized, sized
from server.assembly.tuning.applying import Applied, tuned
from server.assembly.tuning.child import Child
from server.assembly.tuning.profile import (
    Profile,
    holds_for,
    machine,
    profile_path,
    write_profile,
)
from server.assembly.tuning.session import Outcome, Part, Session, Watcher
from server.assembly.wanted import Fetch, wanted
from server.catalog.plan import Memory
from server.core.clock import Clock
from server.core.errors import ConfigError
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tuned, and where its profile lies."""

    context: Sized
    memory: Memory
    path: Path
    machine: str


def subject_of(settings: Settings, fetch: Fetch) -> Subject:
    """Return the first model's context as it would be served without a profile. Raises `ConfigError`."""
    refuse_cpu_build(settings)
    (first, *_) = wanted(settings, fetch)
    memory = machine_memory(settings, gpu_wanted=first.model.n_gpu_layers != 0)
    (context,) = sized(grouped([first], memory), memory)
    if context.group.engine.deterministic:
        raise ConfigError(
            "With engine.deterministic there is nothing to tune: it takes one row at a time."
        )
    path = profile_path(settings.tuned_dir, context, holds_for(context, memory))
    return Subject(context, memory, path, machine(memory))


def profile_of(settings: Settings, fetch: Fetch) -> Applied | None:
    """Return the profile that the first model would be served with. Raises `ConfigError`."""
    (first, *_) = wanted(settings, fetch)
    memory = machine_memory(settings, gpu_wanted=first.model.n_gpu_layers != 0)
    _, applied = tuned(sized(grouped([first], memory), memory), memory, settings.tuned_dir)
    return applied[0] if applied else None


def tune(subject: Subject, seconds: float, watcher: Watcher, clock: Clock) -> Outcome:
    """Measure for at most about `seconds`. Raises `TrialFailed` where even the defaults do not run."""
    with Child() as child:
        return Session(subject.context, subject.memory, child, watcher, clock).run(seconds)


def keep(subject: Subject, outcome: Outcome) -> bool:
    """Write the profile; without one, remove that of an earlier tuning. Tells whether one was there.

    Raises `OnegpuError`.
    """
    there = subject.path.exists()
    if not outcome.settings:
        subject.path.unlink(missing_ok=True)
        return there
    profile = Profile(
        subject.context.group.model.path.name,
        holds_for(subject.context, subject.memory),
        outcome.settings,
        _measured(outcome),
    )
    write_profile(subject.path, profile)
    return there


def _measured(outcome: Outcome) -> dict[str, Any]:
    parts = {"context": outcome.context, "prompts": outcome.prompts}
    return {
        "on": datetime.now().astimezone().isoformat(timespec="seconds"),
        **{name: _figures(part) for name, part in parts.items() if part.settings},
    }


def _figures(part: Part) -> dict[str, Any]:
    confirmed, work = part.confirmed, part.work
    if confirmed is None or work is None:
        raise AssertionError("only what was confirmed is written")
    return {
        "gain": round(confirmed.gain, 3),
        "streams": work.streams,
        "depth": work.document or work.depth,
        "tokens_per_second": {
            "before": [_rounded(asdict(rates)) for rates in confirmed.before],
            "profile": [_rounded(asdict(rates)) for rates in confirmed.after],
        },
    }


def _rounded(rates: dict[str, float | None]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in rates.items() if value is not None}
