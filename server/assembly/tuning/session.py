"""One tuning: candidates one by one beside the best so far, at last the profile beside the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from server.assembly.engine import llama_params, scheduler_limits
from server.assembly.sizing import Sized, sized
from server.assembly.tuning.applying import with_changes
from server.assembly.tuning.candidates import Candidate, candidates, is_explicit
from server.assembly.tuning.judging import Comparison
from server.catalog.plan import Memory
from server.core.clock import Clock
from server.core.errors import ConfigError
from server.engine.prefill import UNMEASURED_ROWS
from server.engine.trial import Rates, TrialFailed, Workload
from server.llama.params import LlamaParams

NO_TIME = "no time was left"
PAIRS = 2
"""A B A B."""
SPLIT_GAIN = 0.10
"""What the split layout must bring where unified is the default: its slots copy prefixes in place of sharing them, and
no run has any."""
_DEPTHS = (2048, 1024, 512, 256, 128, 64, 32)
_MOST_RUN, _LEAST_RUN = 8.0, 1.0
"""Seconds of one run."""
_MOST_STEPS, _LEAST_STEPS = 48, 4
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
class Outcome:
    """What a tuning found."""

    work: Workload | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """The profile; empty where the defaults are kept."""
    trials: list[Trial] = field(default_factory=list)
    confirmed: Comparison | None = None
    """The profile beside the defaults."""
    verdict: str = ""


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

    def run(self, seconds: float) -> Outcome:
        """Tune for at most about `seconds`."""
        self._end = self._clock.monotonic() + seconds
        outcome = Outcome()
        untried = [
            one
            for one in candidates(self._base, on_card=self._memory.has_gpu)
            if not is_explicit(self._base, one.setting)
        ]
        outcome.work = self._calibrate(len(untried))
        for candidate in untried:
            trial = self._try(candidate, outcome)
            outcome.trials.append(trial)
            if trial.taken:
                outcome.settings[candidate.setting] = candidate.value
            self._watcher.tried(trial)
        if not outcome.settings:
            outcome.verdict = "nothing was better than the defaults"
            return outcome
        self._confirm(outcome)
        return outcome

    def _calibrate(self, count: int) -> Workload:
        """Run the defaults once, shortly, and size the work so that all candidates find time."""
        sizes = self._base.sizes
        small = _workload(self._base, min(64, sizes.n_ctx // 2), _LEAST_STEPS)
        if not _fits(small, self._base):
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
        aside = max(0.0, self._clock.monotonic() - begin - _seconds(small, rates))
        rounds = 2 * PAIRS * (count + 1)
        each = (self._left() - loaded) / rounds - aside
        each = min(max(each, _LEAST_RUN), _MOST_RUN)
        work = _fitting(self._base, rates, each)
        self._pair = 2 * (aside + _seconds(work, rates))
        self._limit = _HUNG * self._pair / 2 + 4 * loaded + 5
        return work

    def _try(self, candidate: Candidate, outcome: Outcome) -> Trial:
        # As much again is kept for the confirmation.
        if self._left() < 2 * PAIRS * self._pair:
            return Trial(candidate, NO_TIME)
        changes = outcome.settings | {candidate.setting: candidate.value}
        what = f"{candidate.setting} {candidate.value}"
        try:
            before, after = self._context(outcome.settings), self._context(changes)
            comparison = self._compare(before, after, what, outcome.work)
        except (ConfigError, TrialFailed) as error:
            told = error.message if isinstance(error, ConfigError) else str(error)
            found = told if told == NO_TIME else f"does not run: {told.splitlines()[0]}"
            return Trial(candidate, found)
        return Trial(candidate, _verdict(candidate, comparison), comparison)

    def _confirm(self, outcome: Outcome) -> None:
        """Measure the whole profile beside the defaults; keep the defaults unless it is better."""
        try:
            profile = self._context(outcome.settings)
            outcome.confirmed = self._compare(
                self._base, profile, "the profile beside the defaults", outcome.work
            )
        except (ConfigError, TrialFailed) as error:
            outcome.verdict = f"the profile could not be confirmed ({error})"
        else:
            if outcome.confirmed.better:
                outcome.verdict = "confirmed"
                return
            outcome.verdict = "the profile was not better than the defaults when it was confirmed"
        outcome.settings = {}

    def _compare(self, before: Sized, after: Sized, what: str, work: Workload | None) -> Comparison:
        runs: tuple[list[Rates], list[Rates]] = ([], [])
        begin = self._clock.monotonic()
        for number in range(2 * PAIRS):
            self._watcher.doing(f"{what}: run {number + 1} of {2 * PAIRS}", self._left())
            one = (before, after)[number % 2]
            workload = _same(work, one)
            if self._left() < self._pair / 4:
                raise TrialFailed(NO_TIME)
            limit = min(self._limit, self._left() + self._pair)
            runs[number % 2].append(self._bench.run(llama_params(one), workload, limit))
        self._pair = max(self._pair, (self._clock.monotonic() - begin) / PAIRS)
        return Comparison(*runs)

    def _context(self, changes: dict[str, Any]) -> Sized:
        """Size the context anew. Raises `ConfigError` where it does not fit or its sizes change."""
        (made,) = sized([with_changes(self._base.group, changes)], self._memory)
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


def _workload(one: Sized, depth: int, steps: int) -> Workload:
    limits = scheduler_limits(one)
    beside = min(limits.prefill_rows_decoding, UNMEASURED_ROWS)
    return Workload(one.sizes.slots, depth, steps, limits.prefill_rows, beside)


def _same(work: Workload | None, one: Sized) -> Workload:
    """Return the same work in the chunks of another context."""
    if work is None:
        raise AssertionError("measured before calibration")
    return _workload(one, work.depth, work.steps)


def _fitting(one: Sized, rates: Rates, seconds: float) -> Workload:
    """Return the largest work that takes about `seconds`: most of it for the prompts' depth."""
    generating = 1 / rates.single + one.sizes.slots / rates.all
    steps = int(seconds * 0.35 / generating)
    steps = min(max(steps, _LEAST_STEPS), _MOST_STEPS)
    works = [_workload(one, depth, steps) for depth in _DEPTHS]
    fit = [work for work in works if _fits(work, one)]
    short = fit[-1] if fit else _workload(one, min(64, one.sizes.n_ctx // 2), _LEAST_STEPS)
    return next((work for work in fit if _seconds(work, rates) <= seconds), short)


def _fits(work: Workload, one: Sized) -> bool:
    sizes = one.sizes
    return work.cells <= sizes.n_ctx and work.cells * work.streams <= sizes.kv_cells


def _seconds(work: Workload, rates: Rates) -> float:
    """Estimate what a run takes, from rates at a lesser depth."""
    beside = work.depth / rates.beside if rates.beside else 0.0
    prompts = max(1, work.streams - 1) * work.depth / rates.prefill
    steps = work.steps + 1
    return prompts + beside + steps / rates.single + steps * work.streams / rates.all
