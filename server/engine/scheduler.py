"""Who gets a slot, what the next decode call computes, and what its outcome means.

Deterministic: no clock of its own, no I/O, no thread. One step is
`admit(now)` → `plan()` → (the backend decodes) → `apply(plan, result, now)` → `take_events()`;
`add`, `abort` and `fail` come between steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from operator import attrgetter

from server.core.errors import OnegpuError, QueueTimeout
from server.core.events import Delta, Event, Failed, Finished, FinishReason, Started
from server.core.request import GenerationRequest
from server.engine.cells import cells_beside
from server.engine.cooling import CoolingLimits
from server.engine.detokenizer import Detokenizer
from server.engine.host_memory import HostMemory
from server.engine.interface import DraftInfo, Tokenizer
from server.engine.limits import SchedulerLimits
from server.engine.pace import Pace
from server.engine.pins import Pin, Pins
from server.engine.plan import (
    PLAIN_CALLS,
    Admission,
    CallShape,
    DecodeCode,
    Edit,
    MemoryEdit,
    Rows,
    Sample,
    StepPlan,
    StepResult,
    Suspension,
    Truncation,
)
from server.engine.preemption import Preemption
from server.engine.prefill import Prefill
from server.engine.prefix_index import Missed
from server.engine.recovery import EngineFailure, Recovery
from server.engine.sequence import Sequence, SequenceStatus
from server.engine.sharing import Followers
from server.engine.slots import Placement, SlotPool
from server.engine.speculation import Speculation
from server.engine.taking import take
from server.engine.waitlist import Waitlist


class Scheduler:
    """The engine's policy: slots by rank, decode rows first, then prefill."""

    def __init__(
        self,
        limits: SchedulerLimits,
        tokenizer: Tokenizer,
        *,
        partial_removal: bool = True,
        sharing: bool = False,
        copying: bool = False,
        calls: CallShape = PLAIN_CALLS,
        host: HostMemory | None = None,
        draft: DraftInfo | None = None,
    ) -> None:
        """Take what the KV memory can do: drop the end of a sequence; let sequences share cells, or copy them.

        `calls`: how they should look; `host`: where idle prefixes go when their cells are needed; `draft`: the draft
        model, if there is one.
        """
        self.limits = limits
        cooling = CoolingLimits(limits.cold_steps, limits.warm_cells)
        self.pool = SlotPool(
            slots=limits.slots,
            kv_cells=limits.kv_cells,
            partial_removal=partial_removal,
            sharing=sharing,
            copying=copying,
            host=host,
            align=limits.reuse_align,
            cooling=cooling if sharing and limits.cold_steps else None,
        )
        self.waiting = Waitlist()
        self.running: list[Sequence] = []
        """Sorted by slot: llama.cpp's split KV layout is slower on unsorted rows."""
        self.counters: Counter[str] = Counter()
        self.pace = Pace(calls.tile_rows)
        self._prefill = Prefill(limits, self.pace, calls)
        self._followers = Followers(self.pool, self.counters)
        self.speculation: Speculation | None = None
        if limits.draft_rows and partial_removal:
            self.speculation = Speculation(limits, self.pace, tokenizer.eog, self.counters, draft)
        self.pins = Pins(limits, host, self.counters)
        self._preemption = Preemption(self.pool)
        self._recovery = Recovery(
            self.pool, self.counters, self.fail, partial_removal=partial_removal
        )
        self.preempted = 0
        """Sequences that have begun and wait for a slot again."""
        self._pieces = tokenizer.pieces
        self._eog = tokenizer.eog
        self._by_id: dict[str, Sequence] = {}
        self._events: list[tuple[str, Event]] = []
        self._closed: list[int] = []
        self._forgotten: list[str] = []
        self._edits: list[MemoryEdit] = []
        self._admitted = 0

    @property
    def has_work(self) -> bool:
        """Whether a sequence runs or waits."""
        return bool(self.running or self.waiting)

    # Between steps

    def add(self, request: GenerationRequest, now: float) -> None:
        """Let a request wait by its rank. `ValueError`: it could never run, or is here."""
        self.limits.require(request)
        if request.request_id in self._by_id:
            message = f"{request.request_id} is already known"
            raise ValueError(message)
        detokenizer = Detokenizer(self._pieces, request.stop, request.thinking)
        sequence = Sequence(request, detokenizer, now)
        self._by_id[request.request_id] = sequence
        self.waiting.add(sequence)

    def pin(self, pins: Iterable[Pin], now: float) -> None:
        """Keep these prompts and no others; what is not there is computed while nobody waits."""
        for request in self.pins.want(tuple(pins)):
            self.add(request, now)

    def abort(self, request_id: str, now: float) -> None:
        """End a request because nobody wants it; a no-op when it is not here any more."""
        sequence = self._by_id.get(request_id)
        if sequence is not None:
            self.counters["aborted"] += 1
            self._finish(
                sequence, SequenceStatus.ABORTED, self._ending(sequence, FinishReason.ABORTED, now)
            )

    def fail(self, request_id: str, error: OnegpuError) -> None:
        """End a request by its own error."""
        sequence = self._by_id.get(request_id)
        if sequence is not None:
            self.counters["failed"] += 1
            self._finish(sequence, SequenceStatus.FAILED, Failed(error, sequence.usage()))

    def take_events(self) -> list[tuple[str, Event]]:
        """Hand over the events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def take_closed(self) -> list[int]:
        """Hand over the slots whose samplers may go."""
        closed, self._closed = self._closed, []
        return closed

    def take_forgotten(self) -> list[str]:
        """Hand over the requests whose samplers were set aside and will not be wanted any more."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    # A step

    def admit(self, now: float, *, held: bool = False) -> Iterator[Edit]:
        """Expire what waited too long, give slots to who is next unless `held`; yield memory edits.

        Each edit has to be carried out before the next one is asked for: what follows depends on whether a prefix
        could be restored (`restored`) and a sampler made (`fail`).
        """
        self._expire(now)
        self.pool.begin_step()
        edits, self._edits = self._edits, []
        yield from edits
        yield from self._followers.advance()
        slots, acquire = self.limits.slots, self.pool.acquire
        if held:
            yield from self._resume(now)
            return
        while len(self.running) < slots and (found := self.waiting.take(acquire, slots)):
            yield from self._enter(*found, now)
        if self.waiting and self.running:
            yield from self._preempt(now)
        if self.running:
            yield from self.pool.cool(self.counters["steps"])

    def restored(self, slot: int, cells: int) -> None:
        """Take what came of the last `Restore` or `Copy`: `cells` are there. What is missing is computed."""
        self.pool.restored(self.pool.slots[slot], cells)

    def plan(self) -> StepPlan | None:
        """Plan one row per decoding sequence, then prefill from what is left. None: no work."""
        if not self.running:
            return None
        rows: list[Rows] = []
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self.running:
            if sequence.decoding:
                decoding.append(sequence)
                rows.append(Rows(sequence.slot, sequence.computed, sequence.tokens[-1:], outputs=1))
            elif sequence.leader is None:
                prefilling.append(sequence)
        decode_rows = len(rows)
        if prefilling:
            beside = partial(cells_beside, self.pool.slots, decoding, prefilling)
            behind, halvings = self._followers.behind(), self._recovery.no_cells
            rows, decode_rows = self._prefill.step(prefilling, behind, rows, beside, halvings)
        draft_rows = 0
        if self.speculation is not None and not self._recovery.no_cells:
            draft_rows = self.speculation.extend(rows, [] if prefilling else decoding)
        if not rows:  # the one whom all others wait for has just failed
            return None
        computed = sum(len(row.tokens) for row in rows)
        return StepPlan(rows, decode_rows, computed - decode_rows - draft_rows, draft_rows)

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """Take a decode call's outcome. Raises `EngineFailure` when calls keep failing."""
        self.counters["steps"] += 1
        if result.code is not DecodeCode.OK:
            self._edits += self._recovery.failed(plan, result)
            return
        self._recovery.succeeded()
        plan.count(self.counters)
        self.counters["passes"] += result.passes
        slots = self.pool.slots
        samples = iter(result.samples)
        for row in plan.rows:
            sequence = slots[row.slot].sequence
            if sequence is None:
                message = f"the plan names idle slot {row.slot}"
                raise EngineFailure(message)
            sequence.computed += len(row.tokens)
            if row.outputs:
                taken = self._accept(sequence, row, next(samples), now)
                if row.outputs > 1 and self.speculation is not None:
                    self.speculation.learn(sequence, row.outputs - 1, taken - 1)

    # Details

    def _preempt(self, now: float) -> Iterator[Edit]:
        """Let those who wait have the slots of worse classes; these wait again."""
        while (found := self._preemption.next(self.waiting, self.running)) is not None:
            sequence, victims = found
            for victim in victims:
                self.counters["preempted"] += 1
                self.running.remove(victim)
                self.pool.release(self.pool.slots[victim.slot])
                victim.preempt()
                self.waiting.put_back(victim)
                self.preempted += 1
                yield Suspension(victim.slot, victim.request.request_id)
            # Those that followed a victim go on from what it has computed, before that makes room.
            yield from self._followers.advance()
            yield from self._enter_now(sequence, now)

    def _resume(self, now: float) -> Iterator[Edit]:
        """Let those go on that had begun."""
        for sequence in [one for one in self.waiting if one.preempted]:
            yield from self._enter_now(sequence, now)

    def _enter_now(self, sequence: Sequence, now: float) -> Iterator[Edit]:
        """Let one that waits have a slot whoever is next, if there is one."""
        place = self.pool.acquire(sequence)
        if place is not None:
            self.waiting.take_out(sequence)
            yield from self._enter(sequence, place, now)

    def _enter(self, sequence: Sequence, place: Placement, now: float) -> Iterator[Edit]:
        """Let a sequence run in the slot that was found; yield the memory edits that this takes."""
        index, match = place.slot.index, place.match
        sequence.slot = index
        sequence.status = SequenceStatus.RUNNING
        self._admitted += 1
        sequence.turn = self._admitted
        self._followers.admit(sequence, match)
        if self.speculation is not None:
            self.speculation.follow(sequence)
        self.running.append(sequence)
        self.running.sort(key=attrgetter("slot"))
        self.counters["evictions"] += sum(type(edit) is Truncation for edit in place.edits)
        yield from place.edits
        keep = sequence.computed
        if sequence.preemptions:
            self.preempted -= 1
            self.counters["resumed"] += 1
            self.counters["recomputed_rows"] += max(0, sequence.stood - keep)
        else:
            sequence.started_at, sequence.cached = now, keep
            self.counters["prompt_tokens"] += sequence.prompt_length
            self.counters["cached_tokens"] += keep
            cached = max(keep, match.awaited)
            missed = place.missed or (None if cached else Missed.FAILED)
            if missed is not None:
                self.counters[f"prefix_missed_{missed}"] += 1
            self._emit(sequence, Started(index, sequence.prompt_length, cached, missed))
        yield Admission(index, keep, sequence.request)

    def _accept(self, sequence: Sequence, row: Rows, samples: list[Sample], now: float) -> int:
        """Take the tokens that were sampled, some of a draft perhaps and one more, up to the end; return how many."""
        sequence.computed -= row.outputs
        for sample in samples:
            sequence.computed += 1
            if sample.error is None:
                self.counters["generated_tokens"] += 1
                if sequence.first_token_at is None:
                    sequence.first_token_at = now
            outcome = take(sequence, sample, self._eog)
            if isinstance(outcome, OnegpuError):
                self.fail(sequence.request.request_id, outcome)
                break
            delta, reason = outcome
            if reason is not None:
                self._complete(sequence, delta, reason, now)
                break
            self._events.append((sequence.request.request_id, delta))
            if sequence.lookup is not None:
                sequence.lookup.push(sequence.tokens)
        taken = sequence.computed - row.start - len(row.tokens) + row.outputs
        if taken < len(samples):  # the end was within the draft, and what is behind it has cells
            self._edits.append(Truncation(row.slot, sequence.computed))
        return taken

    def _complete(self, sequence: Sequence, last: Delta, reason: FinishReason, now: float) -> None:
        if last.text or last.token_ids:
            self._emit(sequence, last)
        self.counters[f"finished_{reason}"] += 1
        self._finish(sequence, SequenceStatus.FINISHED, self._ending(sequence, reason, now))

    def _ending(self, sequence: Sequence, reason: FinishReason, now: float) -> Finished:
        return Finished(reason, sequence.usage(), sequence.timings(now), sequence.detokenizer.match)

    def _finish(self, sequence: Sequence, status: SequenceStatus, event: Event) -> None:
        """The one place where a sequence ends: slot and cells back, one terminal event out."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            slot = self.pool.slots[sequence.slot]
            self.pool.release(slot)
            self._closed.append(slot.index)
            if sequence.background:
                self._edits += self.pins.computed(sequence.request.request_id, slot)
        else:
            self.pins.ended(sequence.request.request_id)
            self.waiting.remove(sequence)
            if sequence.preempted:
                self.preempted -= 1
                self._forgotten.append(sequence.request.request_id)
        sequence.status = status
        del self._by_id[sequence.request.request_id]
        self._emit(sequence, event)

    def _emit(self, sequence: Sequence, event: Event) -> None:
        self._events.append((sequence.request.request_id, event))

    def _expire(self, now: float) -> None:
        for sequence in self.waiting.overdue(now):
            waited = round(now - sequence.submitted_at, 2)
            message = f"No slot became free within {waited:g} s. The server is busy; try later."
            self.fail(sequence.request.request_id, QueueTimeout(message))
