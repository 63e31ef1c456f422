"""One tuning: candidates one by one beside the best so far, at last the profile beside the defaults.

First what a context is made with; then, on top of what was confirmed, how many rows of a prompt a step has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from server.assembly.engine import llama_params, scheduler_limits
from server.assembly.sizing import Sized, sized
from server.assembly.tuning.applying import with_changes
from server.assembly.tuning.candidates import (
    Candidate,
    candidates,
    is_explicit,
    prompt_candidates,
)
from server.assembly.tuning.judging import Comparison
from server.assembly.tuning.works import (
    LEAST_STEPS,
    fits,
    fitting,
    seconds_of,
    with_document,
    workload,
)
from server.catalog.plan import Memory
from server.core.clock import Clock
from server.core.errors import ConfigError
from server.engine.trial import Rates, TrialFailed, Workload
from server.llama.params import LlamaParams

NO_TIME = "no time was left"
PAIRS = 2
"""A B A B."""
SPLIT_GAIN = 0.10
"""What the split layout must bring where unified is the default: its slots copy prefixes in place of sharing them, and
no run has any."""
_CONTEXT_SHARE = 0.65
"""Of the time, for what a context is made with."""
_HUNG = 8.0
"""A run that takes so many times what the defaults took has lost."""


class Bench(Protocol):
    """Measures one configuration."""

    def run(self, params: LlamaParams, work: Workload, limit: float) -> Rates:
        """Measure within `limit` seconds. Raises `TrialFailed`."""
        ...


class Watcher(Protocol):
    """Is told how far it is."""

    def doing(self, what: str, left: float) -> None:
        """`left`: seconds until the whole is done, at most."""
        ...

    def tried(self, trial: Trial) -> None:
        """A candidate was measured, or was not."""
        ...


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a candidate."""

    candidate: Candidate
    verdict: str
    """`taken`, or why not."""
    comparison: Comparison | None = None

    @property
    def taken(self) -> bool:
        """Whether it became part of the profile."""
        return self.verdict == "taken"


@dataclass(slots=True)
class Part:
    """What was found for settings that are measured alike."""

    work: Workload | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Its part of the profile; empty where the defaults are kept."""
    trials: list[Trial] = field(default_factory=list)
    confirmed: Comparison | None = None
    """What was taken, beside what was there before."""
    verdict: str = ""


@dataclass(slots=True)
class Outcome:
    """What a tuning found."""

    context: Part = field(default_factory=Part)
    """What a context is made with, on top of the defaults."""
    prompts: Part = field(default_factory=Part)
    """How prompts are cut, on top of that."""

    @property
    def settings(self) -> dict[str, Any]:
        """The profile; empty where the defaults are kept."""
        return self.context.settings | self.prompts.settings

    @property
    def trials(self) -> list[Trial]:
        """All of them, in order."""
        return self.context.trials + self.prompts.trials


class Session:
    """Keeps to the time; raises `TrialFailed` where even the defaults do not run."""

    def __init__(
        self, base: Sized, memory: Memory, bench: Bench, watcher: Watcher, clock: Clock
    ) -> None:
        """`base`: the context as it would be served without a profile."""
        self._base = base
        self._memory = memory
        self._bench = bench
        self._watcher = watcher
        self._clock = clock
        self._end = 0.0
        self._pair = 0.0
        """Seconds of two runs, loading included."""
        self._limit = 0.0
        self._before: dict[str, Any] = {}
        """What was confirmed before this part."""

    def run(self, seconds: float) -> Outcome:
        """Tune for at most about `seconds`."""
        outcome, begin = Outcome(), self._clock.monotonic()
        some = bool(self._untried(prompt_candidates(self._base)))
        self._end = begin + seconds * (_CONTEXT_SHARE if some else 1)
        untried = self._untried(candidates(self._base, on_card=self._memory.has_gpu))
        rates, aside = self._calibrate(outcome.context, len(untried))
        self._tune(outcome.context, untried)
        self._before, self._end = outcome.context.settings, begin + seconds
        now = self._context(self._before)
        if untried := self._untried(prompt_candidates(now)):
            self._size_document(outcome.prompts, now, rates, aside, len(untried))
            self._tune(outcome.prompts, untried)
        return outcome

    def _untried(self, found: Iterable[Candidate]) -> list[Candidate]:
        return [one for one in found if not is_explicit(self._base, one.setting)]

    def _tune(self, part: Part, untried: Iterable[Candidate]) -> None:
        for candidate in untried:
            trial = self._try(candidate, part)
            part.trials.append(trial)
            if trial.taken:
                part.settings[candidate.setting] = candidate.value
            self._watcher.tried(trial)
        if part.settings:
            self._confirm(part)
        else:
            part.verdict = "nothing was better than the defaults"

    def _calibrate(self, part: Part, count: int) -> tuple[Rates, float]:
        """Run the defaults once, shortly, and size the work so that all candidates find time.

        Returns the rates, and seconds of a run that are not measured.
        """
        sizes = self._base.sizes
        small = workload(self._base, min(64, sizes.n_ctx // 2), LEAST_STEPS)
        if not fits(small, self._base):
            raise ConfigError(
                f"n_ctx {sizes.n_ctx} is too short to measure anything. Give a longer one."
            )
        self._watcher.doing("loading the model with the defaults", self._left())
        params = llama_params(self._base)
        begin = self._clock.monotonic()
        self._bench.run(params, small, max(self._left(), 1.0))
        loaded = self._clock.monotonic() - begin
        begin = self._clock.monotonic()
        rates = self._bench.run(params, small, max(self._left(), 1.0))
        aside = max(0.0, self._clock.monotonic() - begin - seconds_of(small, rates))
        work = fitting(self._base, rates, self._each(count, loaded) - aside)
        part.work = work
        self._pair = 2 * (aside + seconds_of(work, rates))
        self._limit = _HUNG * self._pair / 2 + 4 * loaded + 5
        return rates, aside

    def _size_document(
        self, part: Part, now: Sized, rates: Rates, aside: float, count: int
    ) -> None:
        """Take the longest document with which all candidates find time."""
        part.work = with_document(now, rates, self._each(count, 0.0) - aside)
        taken = aside + seconds_of(part.work, rates)
        self._pair, self._limit = 2 * taken, _HUNG * taken + 5 + self._limit

    def _each(self, count: int, loaded: float) -> float:
        """Return seconds for each run of `count` candidates and the confirmation."""
        return (self._left() - loaded) / (2 * PAIRS * (count + 1))

    def _try(self, candidate: Candidate, part: Part) -> Trial:
        document = 0 if part.work is None else part.work.document
        if document and isinstance(candidate.value, int) and document <= candidate.value:
            return Trial(candidate, f"time is too short for prompts of more than {document} tokens")
        # As much again is kept for the confirmation.
        if self._left() < 2 * PAIRS * self._pair:
            return Trial(candidate, NO_TIME)
        what = f"{candidate.setting} {candidate.value}"
        try:
            before = self._context(part.settings)
            after = self._context(part.settings | {candidate.setting: candidate.value})
            if document and scheduler_limits(before) == scheduler_limits(after):
                return Trial(candidate, "so it is already")
            comparison = self._compare(before, after, what, part.work)
        except (ConfigError, TrialFailed) as error:
            told = error.message if isinstance(error, ConfigError) else str(error)
            found = told if told == NO_TIME else f"does not run: {told.splitlines()[0]}"
            return Trial(candidate, found)
        return Trial(candidate, _verdict(candidate, comparison), comparison)

    def _confirm(self, part: Part) -> None:
        """Measure all that was taken beside what was there before; keep that unless it is better."""
        try:
            before, after = self._context({}), self._context(part.settings)
            what = "the profile beside the defaults"
            part.confirmed = self._compare(before, after, what, part.work)
        except (ConfigError, TrialFailed) as error:
            part.verdict = f"the profile could not be confirmed ({error})"
        else:
            if part.confirmed.better:
                part.verdict = "confirmed"
                return
            part.verdict = "the profile was not better than the defaults when it was confirmed"
        part.settings = {}

    def _compare(self, before: Sized, after: Sized, what: str, work: Workload | None) -> Comparison:
        if work is None:
            raise AssertionError("measured before calibration")
        runs: tuple[list[Rates], list[Rates]] = ([], [])
        begin = self._clock.monotonic()
        for number in range(2 * PAIRS):
            self._watcher.doing(f"{what}: run {number + 1} of {2 * PAIRS}", self._left())
            one = (before, after)[number % 2]
            workload = replace(work, limits=scheduler_limits(one))
            if self._left() < self._pair / 4:
                raise TrialFailed(NO_TIME)
            limit = min(self._limit, self._left() + self._pair)
            runs[number % 2].append(self._bench.run(llama_params(one), workload, limit))
        self._pair = max(self._pair, (self._clock.monotonic() - begin) / PAIRS)
        return Comparison(*runs)

    def _context(self, changes: dict[str, Any]) -> Sized:
        """Size the context anew, on top of what was confirmed. `ConfigError`: it does not fit, or its sizes change."""
        (made,) = sized([with_changes(self._base.group, self._before | changes)], self._memory)
        now, was = made.sizes, self._base.sizes
        if (now.slots, now.n_ctx, now.kv_cells) != (was.slots, was.n_ctx, was.kv_cells):
            raise ConfigError(f"it leaves room for {now.slots} slots of {now.n_ctx} tokens only")
        return made

    def _left(self) -> float:
        return self._end - self._clock.monotonic()


def _verdict(candidate: Candidate, comparison: Comparison) -> str:
    if not comparison.better:
        costly = comparison.costly
        return (
            f"costs {costly}" if costly and comparison.gain > 0 else "not better beyond the noise"
        )
    split = candidate.setting == "engine.kv_layout" and candidate.value == "split"
    if split and comparison.gain < SPLIT_GAIN:
        return f"better by less than {SPLIT_GAIN:.0%}, and its slots copy prefixes instead of sharing them"
    return "taken"
