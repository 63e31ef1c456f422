"""Builders for engine tests; the scripted backend's answers betray a wrong KV cache."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from server.core.errors import GenerationFailed
from server.core.events import Event
from server.core.request import GenerationRequest
from server.engine.host_memory import HostBudget
from server.engine.interface import Backend, DraftInfo, EngineState, HostState, ModelInfo
from server.engine.limits import SchedulerLimits
from server.engine.loop import EngineLoop
from server.engine.pins import FindPins
from server.engine.plan import CallShape, DecodeCode, Foreseen, Rows, Sample, StepPlan, StepResult
from server.engine.scheduler import Scheduler
from server.llama.grammar import LlamaGrammars

N_VOCAB = 258
EOG = 257

MODEL_INFO = ModelInfo(
    path="scripted.gguf",
    architecture="scripted",
    description="scripted",
    size_bytes=1,
    n_params=1,
    n_vocab=N_VOCAB,
    n_ctx_train=4096,
    chat_template=None,
    fingerprint="fp_scripted",
    created=0,
    shares_cells=True,
    saves_cells=True,
)


DRAFT_INFO = DraftInfo(n_vocab=N_VOCAB, rows=64)


class FakeClock:
    """Stands still until told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now


class ByteTokenizer:
    """Token i is byte i; 256 is a control token, 257 ends the answer."""

    n_vocab = N_VOCAB
    pieces: Sequence[bytes] = [bytes([value]) for value in range(256)] + [b"", b""]
    eog = frozenset({EOG})
    control_tokens: Mapping[str, int] = {"<|start|>": 256, "<|end|>": EOG}
    marker_tokens: Mapping[str, int] = {}
    bos_text = ""
    eos_text = "<|end|>"

    @cached_property
    def grammars(self) -> LlamaGrammars:
        return LlamaGrammars(self)

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        return b"".join(self.pieces[token] for token in tokens)


def hashed_successor(tokens: Sequence[int]) -> int:
    """Next token from all tokens before it: one wrong cell changes the answer. Printable."""
    return 32 + zlib.crc32(repr(list(tokens)).encode()) % 95


@dataclass(frozen=True)
class ScriptedState:
    """A slot's tokens, and whose they are."""

    tokens: tuple[int, ...]
    owners: tuple[tuple[str, bool], ...] = ()

    @property
    def cells(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        return state_size(len(self.tokens))


def state_size(cells: int) -> int:
    """Bytes of a scripted state."""
    return 100 + 10 * cells


def mostly_a(tokens: Sequence[int]) -> int:
    """Next token as `hashed_successor`, but foreseeable: four times of five the same letter."""
    return 97 + (zlib.crc32(repr(list(tokens)).encode()) % 5 == 0)


def recite(script: Sequence[int]) -> Callable[[Sequence[int]], int]:
    """Say `script` to whoever begins with it; one wrong cell, and the answer is another."""

    def successor(tokens: Sequence[int]) -> int:
        said = list(tokens)
        return script[len(said)] if said == list(script[: len(said)]) else hashed_successor(said)

    return successor


class ScriptedBackend:
    """Keeps tokens per slot as a KV cache would and insists on every rule llama.cpp aborts for."""

    def __init__(
        self,
        limits: SchedulerLimits,
        *,
        successor: Callable[[Sequence[int]], int] = hashed_successor,
        codes: Mapping[int, DecodeCode] | None = None,
        sample: Callable[[int], Sample] | None = None,
        partial_removal: bool = True,
        split: bool = False,
        calls: CallShape | None = None,
        foresees: Callable[[Sequence[int]], int] | None = None,
        draft_codes: Mapping[int, DecodeCode] | None = None,
        draft: DraftInfo = DRAFT_INFO,
    ) -> None:
        """`codes`: number of the decode call, from 0 → the code it shall return; `split`: copies share no
        cells, and calls take several passes unless `calls` says otherwise. `foresees`: what a draft model takes
        to come next, with the codes of its calls; None: there is none.
        """
        self.info = replace(
            MODEL_INFO,
            partial_removal=partial_removal,
            shares_cells=not split,
            calls=CallShape(one_pass=not split) if calls is None else calls,
            draft=None if foresees is None else draft,
        )
        self.foresees = foresees
        self.draft_codes = dict(draft_codes or {})
        self.draft_cells: list[list[int]] = [[] for _ in range(limits.slots)]
        """Slot → the tokens in the draft model's cells."""
        self.draft_calls: list[list[Rows]] = []
        self.tokenizer = ByteTokenizer()
        self.limits = limits
        self.successor = successor
        self.codes = dict(codes or {})
        self.cells: list[list[int]] = [[] for _ in range(limits.slots)]
        """Slot → the tokens in its cells."""
        self.places: list[list[int]] = [[] for _ in range(limits.slots)]
        """Slot → which cells these are; several slots may have the same."""
        self.copies: list[tuple[int, int, int, int]] = []
        """Calls before it, source, slot and cells of every copy."""
        self._places = itertools.count()
        self.open_slots: dict[int, GenerationRequest] = {}
        self.owners: list[list[tuple[str, bool]]] = [[] for _ in range(limits.slots)]
        """Slot → for whom its cells were computed or taken over, and whether they are public there."""
        self.draws: dict[int, Iterator[int]] = {}
        """Slot → what its sampler adds to each token; it goes on with every draw."""
        self.aside: dict[str, Iterator[int]] = {}
        """The same of requests that have no slot for a while."""
        self.plans: list[StepPlan] = []
        self.fail_open: set[str] = set()
        self.fail_sample: dict[str, int] = {}
        """Request id → how many samples succeed before one raises."""
        self.sample = sample or self._sample
        self.most_cells = 0
        self.save_fails = self.restore_fails = self.copy_fails = False
        self.saves: list[tuple[int, int]] = []
        """Slot and cells of each."""
        self.restores: list[tuple[int, int]] = []
        self.closed = False

    def truncate(self, slot: int, keep: int) -> None:
        assert keep <= len(self.cells[slot]), "the scheduler counts cells that are not there"
        del self.cells[slot][keep:]
        del self.places[slot][keep:]
        del self.owners[slot][keep:]

    def copy(self, source: int, slot: int, cells: int) -> None:
        assert self.info.shares_cells or self.info.saves_cells
        assert source != slot
        assert 0 < cells <= len(self.cells[source]), "the scheduler counts cells that are not there"
        assert not self.cells[slot], "positions must not be there twice"
        if self.copy_fails:
            raise RuntimeError("no copy")
        self.copies.append((len(self.plans), source, slot, cells))
        self.cells[slot] = self.cells[source][:cells]
        self.places[slot] = self.places[source][:cells]
        if not self.info.shares_cells:
            self.places[slot] = [next(self._places) for _ in range(cells)]
        self.owners[slot] = self.owners[source][:cells]
        if slot in self.open_slots:
            self._own(slot, self.open_slots[slot])

    def state_bytes(self, slot: int) -> int:
        return state_size(len(self.cells[slot]))

    def save(self, slot: int, cells: int) -> ScriptedState:
        assert 0 < cells == len(self.cells[slot]), "the scheduler counts cells that are not there"
        if self.save_fails:
            raise MemoryError("no host memory")
        self.saves.append((slot, cells))
        return ScriptedState(tuple(self.cells[slot]), tuple(self.owners[slot]))

    def restore(self, slot: int, state: HostState) -> int:
        assert isinstance(state, ScriptedState)
        assert not self.cells[slot], "positions must not be there twice"
        room = self.limits.kv_cells - self.used_cells()
        if self.restore_fails or state.cells > room:
            return 0
        self.restores.append((slot, state.cells))
        self.cells[slot] += state.tokens
        self.places[slot] += [next(self._places) for _ in state.tokens]
        self.owners[slot] += state.owners
        return state.cells

    def open(self, slot: int, request: GenerationRequest) -> None:
        self.close(slot)
        self._own(slot, request)
        if request.request_id in self.fail_open:
            raise ValueError("no such sampler")
        self.open_slots[slot] = request
        kept = self.aside.pop(request.request_id, None)
        self.draws[slot] = draws_of(request) if kept is None else kept

    def _own(self, slot: int, request: GenerationRequest) -> None:
        """A slot's cells are a request's now, if they may be."""
        for place, (scope, public) in enumerate(self.owners[slot]):
            shared = public and place < request.public_tokens
            assert shared or scope == request.cache_scope, "another's cells"
        self.owners[slot] = _owners(request, 0, len(self.cells[slot]))

    def close(self, slot: int) -> None:
        self.open_slots.pop(slot, None)

    def set_aside(self, slot: int, request_id: str) -> None:
        assert self.open_slots.pop(slot).request_id == request_id
        self.aside[request_id] = self.draws.pop(slot)

    def forget(self, request_id: str) -> None:
        del self.aside[request_id]

    def decode(self, plan: StepPlan) -> StepResult:
        number = len(self.plans)
        self.plans.append(plan)
        code = self.codes.get(number, DecodeCode.OK)
        self._check(plan)
        if code in (DecodeCode.ABORTED, DecodeCode.FAILED):
            for row in plan.rows:  # half of each is computed; what would be sampled is lost
                kept = min(len(row.tokens) // 2, len(row.tokens) - row.outputs)
                self._compute(row.slot, row.tokens[:kept])
            return StepResult(
                code, cells={row.slot: len(self.cells[row.slot]) for row in plan.rows}
            )
        if code is not DecodeCode.OK:
            return StepResult(code, reason="the plan is wrong")
        for row in plan.rows:
            self._compute(row.slot, row.tokens)
        self.most_cells = max(self.most_cells, self.used_cells())
        assert self.most_cells <= self.limits.kv_cells, "more cells than there are"
        return StepResult(samples=[self._sample_row(row) for row in plan.rows if row.outputs])

    def foresee(self, rows: list[Rows]) -> Foreseen:
        code = self.draft_codes.get(len(self.draft_calls), DecodeCode.OK)
        self.draft_calls.append(rows)
        assert self.foresees is not None
        assert self.info.draft is not None
        slots = [row.slot for row in rows]
        assert slots == sorted(set(slots)), "one entry per slot, sorted"
        assert 0 < sum(len(row.tokens) for row in rows) <= self.info.draft.rows
        for row in rows:
            assert row.tokens
            assert row.outputs in (0, 1)
            assert 0 <= row.start <= len(self.draft_cells[row.slot]), "a gap in the positions"
            assert all(0 <= token < self.info.draft.n_vocab for token in row.tokens)
            assert row.start + len(row.tokens) <= self.limits.n_ctx
            self.draft_cells[row.slot][row.start :] = row.tokens
        if code is not DecodeCode.OK:
            for row in rows:
                self.draft_cells[row.slot].clear()
            return Foreseen(code)
        return Foreseen(
            tokens=[self.foresees(self.draft_cells[row.slot]) for row in rows if row.outputs]
        )

    def shutdown(self) -> None:
        self.closed = True

    def used_cells(self, slots: Iterable[int] | None = None) -> int:
        """Cells that `slots`, or all, hold, each counted once."""
        held = self.places if slots is None else [self.places[slot] for slot in slots]
        return len(set().union(*held))

    def _compute(self, slot: int, tokens: Sequence[int]) -> None:
        request = self.open_slots[slot]
        held = len(self.cells[slot])
        self.owners[slot] += _owners(request, held, held + len(tokens))
        self.cells[slot] += tokens
        self.places[slot] += [next(self._places) for _ in tokens]

    def _check(self, plan: StepPlan) -> None:
        slots = [row.slot for row in plan.rows]
        assert plan.rows, "an empty batch is an error in llama.cpp"
        assert slots == sorted(set(slots)), "one entry per slot, sorted"
        rows = sum(len(row.tokens) for row in plan.rows)
        assert rows == plan.decode_rows + plan.prefill_rows + plan.draft_rows
        assert rows <= self.limits.max_rows
        outputs = sum(row.outputs for row in plan.rows)
        assert outputs <= self.limits.slots + self.limits.draft_rows, (
            "more outputs abort the process"
        )
        for row in plan.rows:
            assert row.slot in self.open_slots, "a row without a sampler"
            assert row.start == len(self.cells[row.slot]), "positions must go on where they ended"
            assert 0 <= row.outputs <= len(row.tokens) > 0
            request = self.open_slots[row.slot]
            most = len(request.prompt) + request.max_tokens
            assert row.start + len(row.tokens) <= most, "cells beyond the reservation"
            assert all(0 <= token < self.tokenizer.n_vocab for token in row.tokens)

    def _sample_row(self, row: Rows) -> list[Sample]:
        """Each sample sees the cells up to its own row; those behind the last one go."""
        cells, places = self.cells[row.slot], self.places[row.slot]
        drafted, drafted_places = cells[len(cells) - row.outputs + 1 :], places[-row.outputs :][1:]
        del cells[len(cells) - len(drafted) :], places[len(places) - len(drafted) :]
        samples = [self.sample(row.slot)]
        for token, place in zip(drafted, drafted_places, strict=True):
            if samples[-1].token != token:
                break
            cells.append(token)
            places.append(place)
            samples.append(self.sample(row.slot))
        return samples

    def _sample(self, slot: int) -> Sample:
        request = self.open_slots[slot]
        left = self.fail_sample.get(request.request_id)
        if left is not None:
            self.fail_sample[request.request_id] = left - 1
            if left == 0:
                return Sample(0, error=GenerationFailed("the sampler failed"))
        return Sample(_drawn(self.successor(self.cells[slot]), self.draws[slot]))


def draws_of(request: GenerationRequest) -> Iterator[int]:
    """What the sampler of a request adds to the script's tokens, one after the other; nothing without a seed."""
    if request.sampling.seed is None:
        return itertools.repeat(0)
    generator = random.Random(request.sampling.seed)
    return iter(lambda: generator.randrange(95), None)


def _drawn(token: int, draws: Iterator[int]) -> int:
    return 32 + (token - 32 + next(draws)) % 95 if 32 <= token < 127 else token


def answer_of(
    request: GenerationRequest, successor: Callable[[Sequence[int]], int] = hashed_successor
) -> list[int]:
    """Say the tokens that a request gets to its `max_tokens`, whatever runs beside it."""
    tokens, draws = list(request.prompt), draws_of(request)
    for _ in range(request.max_tokens):
        tokens.append(_drawn(successor(tokens), draws))
    return tokens[len(request.prompt) :]


def _owners(request: GenerationRequest, start: int, end: int) -> list[tuple[str, bool]]:
    return [(request.cache_scope, place < request.public_tokens) for place in range(start, end)]


_numbers = itertools.count()


def make_request(
    prompt: str | Sequence[int] = "hello", max_tokens: int = 8, **fields: object
) -> GenerationRequest:
    """Build a request with an id of its own."""
    tokens = list(prompt.encode()) if isinstance(prompt, str) else list(prompt)
    fields.setdefault("request_id", f"r{next(_numbers)}")
    return GenerationRequest(prompt=tokens, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


def make_limits(**fields: int) -> SchedulerLimits:
    """Build small limits: 2 slots of 64 tokens."""
    values = {
        "slots": 2,
        "n_ctx": 64,
        "max_rows": 64,
        "prefill_rows": 32,
        "prefill_rows_decoding": 16,
    } | fields
    values.setdefault("kv_cells", values["slots"] * values["n_ctx"])
    return SchedulerLimits(**values)


class LoopHarness:
    """An `EngineLoop` stepped by hand, with what it published."""

    def __init__(
        self,
        limits: SchedulerLimits | None = None,
        *,
        real: Backend | None = None,
        host: HostBudget | None = None,
        pins: FindPins | None = None,
        cost: Callable[[StepPlan], float] | None = None,
        draft_cost: Callable[[list[Rows]], float] | None = None,
        **scripted: object,
    ) -> None:
        """`real`: a backend in place of the scripted one; `host`: memory to park prefixes in.

        `cost`: seconds that a decode call takes; `draft_cost`: the same of the draft model's.
        """
        self.limits = limits or make_limits()
        self.clock = FakeClock()
        self.backend = ScriptedBackend(self.limits, **scripted)  # type: ignore[arg-type]
        self.real = real
        self.events: dict[str, list[Event]] = {}
        self.states: list[EngineState] = []
        backend: Backend = real or self.backend
        if cost is not None:
            self._take_time(backend, cost)
        if draft_cost is not None:
            self._take_draft_time(backend, draft_cost)
        self.loop = EngineLoop(
            lambda _progress: backend,
            self.limits,
            self.clock,
            self._publish,
            self._notify,
            host,
            pins,
        )
        self.host = host
        self.loop.load()

    def _take_time(self, backend: Backend, cost: Callable[[StepPlan], float]) -> None:
        decode = backend.decode

        def timed(plan: StepPlan) -> StepResult:
            self.clock.now += cost(plan)
            return decode(plan)

        backend.decode = timed  # type: ignore[method-assign]

    def _take_draft_time(self, backend: Backend, cost: Callable[[list[Rows]], float]) -> None:
        foresee = backend.foresee

        def timed(rows: list[Rows]) -> Foreseen:
            self.clock.now += cost(rows)
            return foresee(rows)

        backend.foresee = timed  # type: ignore[method-assign]

    def _publish(self, events: list[tuple[str, Event]]) -> None:
        for request_id, event in events:
            self.events.setdefault(request_id, []).append(event)

    def _notify(self, state: EngineState) -> None:
        self.states.append(state)

    def submit(self, request: GenerationRequest) -> str:
        self.loop.submit(request)
        return request.request_id

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.now += 0.01
            self.loop.step()
            self.check()

    def run(self, limit: int = 10_000) -> None:
        """Step until there is nothing to do."""
        for _ in range(limit):
            self.clock.now += 0.01
            if not self.loop.step():
                return
            self.check()
        raise AssertionError("the loop does not come to rest")

    @property
    def scheduler(self) -> Scheduler:
        assert self.loop.scheduler is not None
        return self.loop.scheduler

    def check(self) -> None:
        """The books balance, and agree with what the backend holds."""
        pool, backend = self.scheduler.pool, self.backend
        pool.check_integrity()
        memory = self.loop.memory
        if memory is not None and self.host is not None:
            assert memory.nbytes == sum(entry.state.nbytes for entry in memory)
            assert memory.nbytes <= self.host.used <= self.host.limit
            held = sum(entry.pins for entry in memory)
            assert held == self.scheduler.pins.kept, "nobody is fetching between steps"
        speculation = self.scheduler.speculation
        if speculation is not None and speculation.guessing is not None and self.real is None:
            shown = speculation.guessing.drafting._held
            for slot, one, cells in zip(pool.slots, shown, backend.draft_cells, strict=True):
                assert one.tokens == cells[: len(one.tokens)], "what the draft model was shown"
                if slot.sequence is not None and slot.sequence.turn == one.turn:
                    agreed = slot.sequence.tokens[: one.agreed]
                    assert one.tokens[: one.agreed] == agreed, "drafts that did not come true"
        if not self.scheduler._edits and self.real is None:
            idle = [slot.index for slot in pool.slots if slot.sequence is None]
            running = set(range(len(pool.slots))) - set(idle)
            in_use = backend.used_cells(running)
            assert pool.idle_cells == backend.used_cells() - in_use
            assert pool.reserved_cells + pool.idle_cells <= pool.kv_cells

    def tokens(self, request_id: str) -> list[int]:
        return [
            token for event in self.events[request_id] for token in getattr(event, "token_ids", ())
        ]

    def text(self, request_id: str) -> str:
        return "".join(getattr(event, "text", "") for event in self.events[request_id])
