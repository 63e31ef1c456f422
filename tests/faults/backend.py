"""An engine over a scripted backend whose steps the test lets happen, one by one or all at once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

from server.core.clock import SystemClock
from server.core.request import GenerationRequest
from server.engine.inprocess import InProcessEngine, TokenStream
from server.engine.interface import Watch
from server.engine.limits import SchedulerLimits
from server.engine.plan import DecodeCode, Sample, StepPlan, StepResult
from tests.factories import ScriptedBackend, hashed_successor, make_limits
from tests.fakes import CHAT_TEMPLATE, FakeTokenizer, model_info

BROKEN_TEMPLATE = "{% if broken is defined %}{{ 1 // 0 }}{% endif %}" + CHAT_TEMPLATE
POISON = 200
"""A token whose bytes cannot be had once the pieces are broken."""
VICTIM = "the victim"
"""Stands in the prompt of the request that a fault hits."""


class Gate:
    """Lets decode calls pass: a number of them, or all."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._free = threading.Event()

    def allow(self, steps: int = 1) -> None:
        self._permits.release(steps)

    def free(self) -> None:
        self._free.set()
        self._permits.release()

    def pass_through(self) -> None:
        while not self._free.is_set():
            if self._permits.acquire(timeout=60):
                return


class BrokenPieces(list[bytes]):
    """A vocabulary's pieces, of which one may be lost."""

    broken = False

    def __getitem__(self, token):  # type: ignore[no-untyped-def]
        if self.broken and token == POISON:
            raise LookupError("the piece is lost")
        return super().__getitem__(token)


class BreakableTokenizer(FakeTokenizer):
    """Raises for the victim once it is broken."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.lossy = BrokenPieces(self.pieces)
        self.pieces = self.lossy

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        if self.broken and VICTIM in text:
            raise OSError("the vocabulary is gone")
        return super().encode(text, add_special=add_special, parse_special=parse_special)


class FaultyBackend(ScriptedBackend):
    """Breaks as it is told; otherwise a scripted backend with a chat template."""

    def __init__(self, limits: SchedulerLimits) -> None:
        super().__init__(limits)
        self.info = model_info(BROKEN_TEMPLATE)
        self.breakable = BreakableTokenizer()
        self.tokenizer = self.breakable  # type: ignore[assignment]
        self.gate = Gate()
        self.sampled: Counter[str] = Counter()
        """Tokens by request id."""
        self.poisoned = False
        self.refuse_victim = self.fail_victim = self.raises = False
        self.changed: Callable[[], object] = lambda: None

    def will_return(self, *codes: DecodeCode) -> None:
        """The call that waits at the gate, and those after it, return these codes."""
        number = len(self.plans)
        self.codes |= {number + index: code for index, code in enumerate(codes)}

    def open(self, slot: int, request: GenerationRequest) -> None:
        if self.refuse_victim and is_victim(request):
            self.fail_open.add(request.request_id)
        super().open(slot, request)

    def decode(self, plan: StepPlan) -> StepResult:
        self.gate.pass_through()
        if self.raises:
            raise MemoryError("no memory for the batch")
        result = super().decode(plan)
        self.changed()
        return result

    def _sample(self, slot: int) -> Sample:
        request = self.open_slots[slot]
        if is_victim(request):
            if self.fail_victim:
                self.fail_sample.setdefault(request.request_id, 0)
            if self.poisoned:
                return Sample(POISON)
        self.sampled[request.request_id] += 1
        return super()._sample(slot)


class FaultyEngine(InProcessEngine):
    """A real engine with a thread of its own; also what test stacks want to know of a fake one."""

    def __init__(self) -> None:
        limits = make_limits(slots=3, n_ctx=512)
        self.backend = FaultyBackend(limits)
        self.info, self.tokenizer = self.backend.info, self.backend.tokenizer
        self.slots, self.n_ctx = limits.slots, limits.n_ctx
        self.requests: list[GenerationRequest] = []
        self._news = asyncio.Event()
        super().__init__(lambda _progress: self.backend, limits, SystemClock())

    async def begin(self) -> None:
        loop = asyncio.get_running_loop()
        self.backend.changed = lambda: loop.call_soon_threadsafe(self._news.set)
        self.start()
        await self.wait_loaded()

    def submit(self, request: GenerationRequest, watch: Watch | None = None) -> TokenStream:
        stream = super().submit(request, watch)
        self.requests.append(request)
        self._news.set()
        return stream

    async def until(self, condition: Callable[[], bool], *, stepping: bool = False) -> None:
        """Wait for what a submission or a step brings about; with `stepping`, let steps happen."""
        while not condition():
            self._news.clear()
            if stepping:
                self.backend.gate.allow()
            await self._news.wait()

    def tokens(self, index: int) -> int:
        """How many tokens request number `index` has been given."""
        return self.backend.sampled[self.requests[index].request_id]

    def expected(self, request: GenerationRequest) -> str:
        """What it is answered if nothing goes wrong: every token follows from all before it."""
        tokens = list(request.prompt)
        for _ in range(request.max_tokens):
            tokens.append(hashed_successor(tokens))
        return bytes(tokens[len(request.prompt) :]).decode()


def is_victim(request: GenerationRequest) -> bool:
    return VICTIM.encode() in bytes(token for token in request.prompt if token < 256)
