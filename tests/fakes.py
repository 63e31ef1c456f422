"""Stand-ins for the engine's seams: a vocabulary of bytes, an engine that says what it is told."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from server.core.errors import EngineDead, InvalidRequest, ModelLoading, OnegpuError
from server.core.events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    SampledLogprobs,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from server.core.request import GenerationRequest
from server.engine.interface import EngineState, EngineStatus, ModelInfo, SlotView, Watch
from server.llama.grammar import LlamaGrammars

CONTROL = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
MARKERS = {
    "<think>": 259,
    "</think>": 260,
    "<tool_call>": 261,
    "</tool_call>": 262,
    "<tool_response>": 263,
    "</tool_response>": 264,
}

CHAT_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\n<tools>' }}{% for tool in tools %}{{ tool | tojson }}
{%- endfor %}{{ '</tools><|im_end|>\n' }}{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{ '<|im_start|>user\n<tool_response>' ~ message.content ~ '</tool_response><|im_end|>\n' }}
{%- else -%}
{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content }}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>{"name": "' ~ call.function.name ~ '", "arguments": ' }}
{{- call.function.arguments ~ '}</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}
{%- endif -%}{%- endif -%}"""


class FakeClock:
    """Time that moves only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeTokenizer:
    """One token per UTF-8 byte, and ChatML's special tokens. Reads markers always, as llama.cpp."""

    bos_text = ""
    eos_text = "<|im_end|>"

    def __init__(
        self,
        control: Mapping[str, int] | None = None,
        markers: Mapping[str, int] | None = None,
    ) -> None:
        self.control_tokens = CONTROL if control is None else control
        self.marker_tokens = MARKERS if markers is None else markers
        special = {**self.control_tokens, **self.marker_tokens}
        self.n_vocab = 256 + len(special)
        self.eog = frozenset({258, 256})
        shown = [bytes([value]) for value in range(256)] + [b""] * len(special)
        for text, token in special.items():
            shown[token] = text.encode()
        self._shown = shown
        hidden = set(self.control_tokens.values())
        self.pieces = [b"" if i in hidden else piece for i, piece in enumerate(shown)]
        self._special = special
        self._all = _splitter(special)
        self._marks = _splitter(self.marker_tokens)
        self.calls = 0

    @cached_property
    def grammars(self) -> LlamaGrammars:
        return LlamaGrammars(self)

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        self.calls += 1
        tokens: list[int] = []
        known = self._special if parse_special else self.marker_tokens
        for part in (self._all if parse_special else self._marks).split(text):
            if part in known:
                tokens.append(known[part])
            else:
                tokens += part.encode()
        return tokens

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        table = self._shown if special else self.pieces
        for token in tokens:
            if not 0 <= token < self.n_vocab:
                raise InvalidRequest(f"Token id {token} is out of range.", param="tokens")
        return b"".join(table[token] for token in tokens)


def _splitter(texts: Mapping[str, int]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if texts else re.compile("()")


def model_info(chat_template: str | None = CHAT_TEMPLATE) -> ModelInfo:
    return ModelInfo(
        path="models/fake.gguf",
        architecture="fake",
        description="fake 1M Q4_K_M",
        size_bytes=1_000_000,
        n_params=1_000_000,
        n_vocab=265,
        n_ctx_train=32768,
        chat_template=chat_template,
        fingerprint="fp_0123456789",
        created=1_700_000_000,
    )


class FakeStream:
    """A `TokenStream` that tests can push into."""

    def __init__(
        self, engine: FakeEngine, request: GenerationRequest, watch: Watch | None = None
    ) -> None:
        self.request = request
        self.watch = watch
        self.request_id = request.request_id
        self.aborted = False
        self.ended = False
        self._engine = engine
        self._pending: deque[Event] = deque()
        self._ready = asyncio.Event()

    def push(self, *events: Event) -> None:
        for event in events:
            if self.ended:
                return
            self.ended = isinstance(event, Finished | Failed)
            self._pending.append(event)
            if self.watch is not None and not isinstance(event, Delta):
                self.watch(event)
        self._ready.set()

    async def next_events(self) -> list[Event]:
        while not self._pending and not self.ended:
            self._ready.clear()
            await self._ready.wait()
        events = list(self._pending)
        self._pending.clear()
        return events

    def abort(self) -> None:
        if not self.ended and not self.aborted:
            self.aborted = True
            self._engine.abort(self)


@dataclass
class Script:
    """What the engine does with a request: texts, each as one delta, then an end."""

    texts: Sequence[str] = ("Hello", " world", "!")
    reason: FinishReason = FinishReason.STOP
    error: OnegpuError | None = None
    cached: int = 0
    stop_match: str | None = None
    """The stop string that ended it; the texts end before it."""


@dataclass(eq=False)
class FakeEngine:
    """Answers at once from a script, or holds requests until the test moves them."""

    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    info: ModelInfo = field(default_factory=model_info)
    slots: int = 4
    n_ctx: int = 4096
    state: EngineState = EngineState.READY
    progress: float = 1.0
    manual: bool = False
    """Requests stay in the line until the test calls `begin`, `say`, `finish` or `fail`."""
    script: Callable[[GenerationRequest], Script] = field(default=lambda _: Script())
    requests: list[GenerationRequest] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    cached: dict[str, int] = field(default_factory=dict)
    waiting: list[FakeStream] = field(default_factory=list)
    running: list[FakeStream] = field(default_factory=list)
    has_work: bool = False
    last_step: float = 0.0
    computed: int = 0
    prefilling: bool = False
    """Every look at the status finds another step done."""
    dead_reason: str | None = None
    gated: bool = False
    held: asyncio.Event | None = None
    load_error: OnegpuError | None = None
    starts: int = 0
    stopping: bool = False
    held_back: bool = False
    row_seconds: float = 0.0
    """What a prompt row is said to take."""
    warmed: int = 0

    def __post_init__(self) -> None:
        self._changed = asyncio.Event()
        self.loaded = asyncio.Event()

    @property
    def model(self) -> tuple[ModelInfo, FakeTokenizer]:
        if self.state is EngineState.LOADING:
            raise ModelLoading("The model is loading, 40% done.", retry_after=3.0)
        if self.state is EngineState.DEAD:
            raise EngineDead(self.dead_reason or "The engine stopped.")
        return self.info, self.tokenizer

    def start(self) -> None:
        """Begin to load; with `gated`, the test ends it by `come_up` or `break_down`."""
        self.starts += 1
        if self.gated:
            self.state, self.progress = EngineState.LOADING, 0.0
        else:
            self.loaded.set()

    def come_up(self) -> None:
        self.state, self.progress = EngineState.READY, 1.0
        self.loaded.set()

    def break_down(self, error: OnegpuError) -> None:
        self.state, self.load_error = EngineState.DEAD, error
        self.loaded.set()

    async def wait_loaded(self) -> None:
        await self.loaded.wait()
        if self.load_error is not None:
            raise self.load_error

    async def stop(self) -> None:
        """End; with `held`, the test says when."""
        self.stopping = True
        if self.held is not None:
            await self.held.wait()
        self.state = EngineState.STOPPED
        self.loaded.set()

    def abandon(self) -> None:
        self.state = EngineState.STOPPED

    def prefill_seconds(self, request: GenerationRequest) -> float:
        return self.row_seconds * len(request.prompt)

    def hold(self, *, held: bool) -> None:
        self.held_back = held

    def warm(self) -> None:
        self.warmed += 1

    def submit(self, request: GenerationRequest, watch: Watch | None = None) -> FakeStream:
        stream = FakeStream(self, request, watch)
        self.requests.append(request)
        self.streams.append(stream)
        self.waiting.append(stream)
        self.changed()
        if not self.manual:
            script = self.script(request)
            self.begin(stream, script.cached)
            for text in script.texts:
                self.say(stream, text)
            if script.error is not None:
                self.fail(stream, script.error)
            else:
                self.finish(stream, script.reason, stop_match=script.stop_match)
        return stream

    def begin(self, stream: FakeStream, cached: int = 0, missed: str | None = None) -> None:
        self.waiting.remove(stream)
        self.running.append(stream)
        self.cached[stream.request_id] = cached
        slot = self.running.index(stream)
        stream.push(Started(slot, len(stream.request.prompt), cached, missed))

    def say(self, stream: FakeStream, text: str) -> None:
        tokens = tuple(self.tokenizer.encode(text, parse_special=True))
        k = stream.request.logprobs
        logprobs = () if k is None else tuple(_logprobs(token, k) for token in tokens)
        stream.push(Delta(text, tokens, logprobs))

    def finish(
        self,
        stream: FakeStream,
        reason: FinishReason = FinishReason.STOP,
        completion: int = 5,
        stop_match: str | None = None,
    ) -> None:
        cached = self.cached.get(stream.request_id, 0)
        usage = Usage(len(stream.request.prompt), completion, cached)
        stream.push(Finished(reason, usage, Timings(0.0, 0.0, 0.0), stop_match))
        self._drop(stream)

    def fail(self, stream: FakeStream, error: OnegpuError) -> None:
        stream.push(Failed(error, Usage(len(stream.request.prompt), 0, 0)))
        self._drop(stream)

    def abort(self, stream: FakeStream) -> None:
        self.aborted.append(stream.request_id)
        self.finish(stream, FinishReason.ABORTED)

    def status(self) -> EngineStatus:
        self.computed += self.prefilling
        self.last_step += self.prefilling
        self.changed()
        return EngineStatus(
            state=self.state,
            load_progress=self.progress,
            error=self.dead_reason,
            slots=self.slots,
            n_ctx=self.n_ctx,
            kv_cells=self.slots * self.n_ctx,
            running=len(self.running),
            waiting=len(self.waiting),
            reserved_cells=0,
            idle_cells=0,
            has_work=self.has_work,
            counters=Counter(steps=7, prefill_rows=3, decode_rows=4),
            step_seconds=0.5,
            last_step=self.last_step,
            held=self.held_back,
        )

    def slot_views(self) -> list[SlotView]:
        views = []
        for index in range(self.slots):
            stream = self.running[index] if index < len(self.running) else None
            views.append(
                SlotView(
                    index=index,
                    running=stream is not None,
                    request_id=stream.request_id if stream else None,
                    n_ctx=self.n_ctx,
                    prompt_tokens=len(stream.request.prompt) if stream else 0,
                    computed_tokens=self.computed if stream else 0,
                    cached_tokens=0,
                    generated_tokens=0,
                    reserved_cells=0,
                )
            )
        return views

    def changed(self) -> None:
        """Wake those in `until`; call it after changing the engine by hand."""
        self._changed.set()

    async def until(self, condition: Callable[[FakeEngine], bool], limit: float = 10.0) -> None:
        """Wait for a state that a change of this engine brings about."""
        async with asyncio.timeout(limit):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    async def submitted(self, count: int = 1) -> FakeStream:
        """Wait for the `count`-th request ever; return its stream."""
        await self.until(lambda engine: len(engine.streams) >= count)
        return self.streams[count - 1]

    def _drop(self, stream: FakeStream) -> None:
        for group in (self.waiting, self.running):
            if stream in group:
                group.remove(stream)
        self.changed()


def _logprobs(token: int, k: int) -> SampledLogprobs:
    top = tuple(TokenLogprob((token + i) % 256, -0.5 - i) for i in range(k))
    return SampledLogprobs(token, -0.5, top)
