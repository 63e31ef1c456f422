"""The one inference thread: it alone loads the context, decodes, samples and edits the KV cache."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable

from server.core.clock import Clock
from server.core.errors import EngineDead, OnegpuError
from server.core.events import Event
from server.core.request import GenerationRequest
from server.engine.edits import Edits
from server.engine.host_memory import HostBudget, HostMemory
from server.engine.interface import Backend, BackendLoader, EngineState
from server.engine.limits import SchedulerLimits
from server.engine.pace import Work
from server.engine.pins import FindPins
from server.engine.plan import DecodeCode
from server.engine.scheduler import Scheduler

log = logging.getLogger(__name__)


_JOIN_SHARE = 1 / 32
"""Of the time that prompts will take, the engine waits so much after a rest for who comes right behind them ..."""
_LONGEST_JOIN = 0.01
"""... and no longer, in seconds."""


class _Stopped(Exception):
    """No error: the loop was stopped while it loaded."""


Publish = Callable[[list[tuple[str, Event]]], None]
"""Takes the events of one step; called on the engine thread, must not block."""


class EngineLoop:
    """Drains the inbox, steps scheduler and backend, publishes. Tests call `step` without a thread.

    Other threads call `submit`, `abort` and `stop`, and read attributes; a single attribute is
    always consistent, two of them may be one step apart.
    """

    def __init__(
        self,
        load: BackendLoader,
        limits: SchedulerLimits,
        clock: Clock,
        publish: Publish,
        notify: Callable[[EngineState], None],
        host: HostBudget | None = None,
        pins: FindPins | None = None,
    ) -> None:
        """`notify` is called on the engine thread with READY, and at the very end.

        `host`: host memory for prefixes that have to leave the KV cache; None keeps none. `pins`: what is computed
        before anybody asks, and kept there.
        """
        self.limits = limits
        self.state = EngineState.LOADING
        self.load_progress = 0.0
        self.load_started = clock.monotonic()
        self.error: OnegpuError | None = None
        self.backend: Backend | None = None
        self.scheduler: Scheduler | None = None
        self.memory: HostMemory | None = None
        self.edits: Edits | None = None
        self.step_seconds = 0.0
        self.last_progress = clock.monotonic()
        """When a step last ended, or work came to an idle loop."""
        self._load = load
        self._clock = clock
        self._publish = publish
        self._notify = notify
        self._host = host
        self._find_pins = pins
        self._warming = False
        """Whether to look anew at what is pinned."""
        self._inbox: deque[GenerationRequest | str] = deque()
        self._wake = threading.Event()
        self._rested = False
        """Whether there was nothing to do before this step."""
        self._stopping = False
        self.held = False
        """Whether what waits has to go on waiting."""

    @property
    def has_work(self) -> bool:
        """Whether a request runs, is on its way in, or waits although it need not."""
        scheduler = self.scheduler
        if self._inbox or scheduler is None:
            return bool(self._inbox)
        begun = bool(scheduler.running or scheduler.preempted)
        return begun if self.held else scheduler.has_work

    def submit(self, request: GenerationRequest) -> None:
        """Any thread: hand in a request. Its outcome comes through `publish`."""
        self._post(request)

    def abort(self, request_id: str) -> None:
        """Any thread: end a request within one step."""
        self._post(request_id)

    def hold(self, *, held: bool) -> None:
        """Any thread: give no slot to what waits, until told otherwise. What runs goes on."""
        if not self.has_work:
            self.last_progress = self._clock.monotonic()
        self.held = held
        self._wake.set()

    def warm(self) -> None:
        """Any thread: look anew at what is pinned, and compute what is not there when nobody waits."""
        self._warming = True
        self._wake.set()

    def stop(self) -> None:
        """Any thread: end after the current step, or within a load at its next sign of progress.

        What still runs gets no further event.
        """
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Load, then step until stopped. The body of the engine thread; never raises."""
        try:
            self.load()
            self._notify(self.state)
            while not self._stopping:
                if not self.step():
                    self._wait()
        except _Stopped:
            log.info("Stopped while the model was loading")
        except OnegpuError as error:
            log.error("The engine stopped: %s", error.message)  # noqa: TRY400 - told, not debugged
            self._die(error)
        except Exception as error:
            log.exception("The engine loop failed")
            self._die(
                EngineDead(
                    f"The engine stopped: {type(error).__name__}: {error}. Restart the server."
                )
            )
        finally:
            self._shutdown()

    def load(self) -> None:
        """Load the model in this thread. Raises `ModelFileError`."""
        self.backend = self._load(self._progress)
        info = self.backend.info
        if self._host is not None and self._host.limit and info.saves_cells:
            self.memory = HostMemory(self._host)
        self.scheduler = Scheduler(
            self.limits,
            self.backend.tokenizer,
            partial_removal=info.partial_removal,
            sharing=info.shares_cells,
            copying=info.saves_cells,
            calls=info.calls,
            host=self.memory,
            draft=info.draft,
        )
        self.edits = Edits(self.backend, self.scheduler, self.memory, self._clock)
        self._warming = True
        self.load_progress = 1.0
        self.state = EngineState.READY

    def step(self) -> bool:
        """Do one step; False when there was nothing to do."""
        scheduler, backend, edits = self.scheduler, self.backend, self.edits
        if scheduler is None or backend is None or edits is None:
            message = "step() before load()"
            raise RuntimeError(message)
        self._drain(scheduler)
        if self._warming:
            self._warm(scheduler)
        # Before admission: an abort may have freed the very slot that is given on now, and closing
        # it later would take the new request's sampler.
        edits.close_finished()
        edits.admit(held=self.held)
        if self._rested:
            self._rested = False
            self._join(scheduler, edits)
        edits.move()
        plan = scheduler.plan()
        if plan is not None:
            speculation = scheduler.speculation
            if speculation is not None:
                plan.draft_rows += speculation.foresee(backend.foresee, self._clock)
            before = self._clock.monotonic()
            result = backend.decode(plan)
            now = self._clock.monotonic()
            self.step_seconds += now - before
            if result.code is DecodeCode.OK:
                scheduler.pace.observe(Work.of(plan.rows), now - before)
                if speculation is not None:
                    speculation.took(plan, now - before)
            else:
                log.error("A decode call ended with %s %s", result.code.name, result.reason)
            edits.computed(plan, result)
            scheduler.apply(plan, result, now)
            self.last_progress = now
        edits.close_finished()
        events = scheduler.take_events()
        if events:
            self._publish(events)
        return plan is not None or bool(events)

    def _warm(self, scheduler: Scheduler) -> None:
        self._warming = False
        if self._find_pins is None:
            return
        try:
            pins, now = self._find_pins(), self._clock.monotonic()
            if not self.has_work:
                self.last_progress = now  # after a long rest, or load, it would count as stalled
            scheduler.pin(pins, now)
        except Exception:
            log.exception("Pinned prompts are not computed ahead")

    def _join(self, scheduler: Scheduler, edits: Edits) -> None:
        """Let those into the first step who come right behind its first: a burst comes one by one.

        Else it would compute one prompt, and all others wait for its end.
        """
        for _ in range(self.limits.slots - len(scheduler.running)):
            rows = sum(one.remaining for one in scheduler.running)
            seconds = rows * _JOIN_SHARE * (scheduler.pace.prefill_row_seconds or 0.0)
            self._wake.clear()
            if not self._inbox:
                self._wake.wait(min(seconds, _LONGEST_JOIN))
            if not self._inbox:
                return
            self._drain(scheduler)
            edits.close_finished()
            edits.admit(held=self.held)

    def _drain(self, scheduler: Scheduler) -> None:
        now = self._clock.monotonic()
        inbox = self._inbox
        while inbox:
            item = inbox.popleft()
            if isinstance(item, str):
                scheduler.abort(item, now)
            else:
                scheduler.add(item, now)

    def _post(self, item: GenerationRequest | str) -> None:
        if not self.has_work:
            self.last_progress = self._clock.monotonic()
        self._inbox.append(item)
        self._wake.set()

    def _wait(self) -> None:
        """Sleep until something comes in, or until somebody has waited for too long in a hold.

        Clearing before waiting would lose a wake-up.
        """
        due = math.inf if self.scheduler is None else self.scheduler.waiting.next_deadline
        left = due - self._clock.monotonic()
        self._wake.wait(None if left == math.inf else max(0.0, left))
        self._wake.clear()
        self._rested = True

    def _progress(self, fraction: float) -> None:
        """Note how far loading is. Raises to end a load of minutes that `stop` has overtaken."""
        if self._stopping:
            raise _Stopped
        self.load_progress = fraction

    def _die(self, error: OnegpuError) -> None:
        self.error = error
        self.state = EngineState.DEAD

    def _shutdown(self) -> None:
        if self.state is not EngineState.DEAD:
            self.state = EngineState.STOPPED
        try:
            if self.memory is not None:
                self.memory.close()
            if self.backend is not None:
                self.backend.shutdown()
        except Exception:
            log.exception("The backend did not shut down cleanly")
        finally:
            self._notify(self.state)
