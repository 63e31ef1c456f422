"""The three seams of the engine: `Backend` below it, `Tokenizer` beside it, `Engine` above it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from server.core.events import Event
from server.core.request import GenerationRequest
from server.engine.grammar import Grammars
from server.engine.plan import PLAIN_CALLS, CallShape, Foreseen, Rows, StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class DraftInfo:
    """Facts about the draft model beside the main one."""

    n_vocab: int
    """Ids below it stand for the same text in both models."""
    rows: int
    """Most rows of one call."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about a loaded model and its context."""

    path: str
    architecture: str
    description: str
    size_bytes: int
    """Bytes of all tensors."""
    n_params: int
    n_vocab: int
    n_ctx_train: int
    """Context length that the model was trained for."""
    chat_template: str | None
    """Jinja source from the GGUF."""
    fingerprint: str
    """Short hash of build, file and KV type, for `system_fingerprint`."""
    created: int
    """Modification time of the file, Unix seconds."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    partial_removal: bool = True
    """False for recurrent and hybrid memories, whose sequences can only be removed whole."""
    calls: CallShape = PLAIN_CALLS
    """How decode calls should look."""
    shares_cells: bool = False
    """Whether several slots can hold the same cells, so that `Backend.copy` costs nothing."""
    saves_cells: bool = False
    """Whether `Backend.save` keeps all cells of a slot, fast enough to be worth it, and `copy` can copy."""
    draft: DraftInfo | None = None
    """Whether there is a draft model, so that `Backend.foresee` can be called."""


class Tokenizer(Protocol):
    """The model's vocabulary. Every method is safe from any thread."""

    @property
    def n_vocab(self) -> int:
        """Number of token ids; valid ids are 0 … n_vocab-1."""
        ...

    @property
    def pieces(self) -> Sequence[bytes]:
        """Token id → its UTF-8 bytes in an answer; control tokens are empty."""
        ...

    @property
    def eog(self) -> frozenset[int]:
        """Tokens that end a generation."""
        ...

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Text → id of tokens that never stand for text, such as `<|im_start|>`."""
        ...

    @property
    def marker_tokens(self) -> Mapping[str, int]:
        """Text → id of user-defined tokens that do stand for text, such as `<think>`."""
        ...

    @property
    def grammars(self) -> Grammars:
        """What compiles grammars over it."""
        ...

    @property
    def bos_text(self) -> str:
        """Text of the begin-of-sequence token, empty if there is none."""
        ...

    @property
    def eos_text(self) -> str:
        """Text of the end-of-sequence token, empty if there is none."""
        ...

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Token ids of `text`.

        `add_special` adds BOS and EOS as the model wants; `parse_special` reads control tokens.
        """
        ...

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """Bytes of `tokens`, with `special` control tokens too. `InvalidRequest`: out of range."""
        ...


class HostState(Protocol):
    """What `Backend.save` gave: a slot's cells as bytes in host memory. Only that very backend reads them."""

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that it takes."""
        ...

    @property
    def cells(self) -> int:
        """Cells that it holds: positions 0 … cells-1."""
        ...


class Backend(Protocol):
    """One llama context with its KV cache and samplers; only the engine thread calls it."""

    @property
    def info(self) -> ModelInfo:
        """Facts about the model."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Its vocabulary."""
        ...

    def truncate(self, slot: int, keep: int) -> None:
        """Drop cells of `slot` at positions ≥ `keep`, which is 0 unless `info.partial_removal`."""
        ...

    def copy(self, source: int, slot: int, cells: int) -> None:
        """Let the empty `slot` have the first `cells` cells of `source`: the same ones with `info.shares_cells`.

        Else copies, which needs `info.saves_cells`; `RuntimeError` or `MemoryError` when that fails, and the slot
        stays empty.
        """
        ...

    def state_bytes(self, slot: int) -> int:
        """Bytes that `save` would take now. Needs `info.saves_cells`, as the next two do."""
        ...

    def save(self, slot: int, cells: int) -> HostState:
        """Copy all cells of `slot` to host memory; it holds `cells` of them. The slot stays as it is.

        `RuntimeError` or `MemoryError` when that fails; nothing is changed then.
        """
        ...

    def restore(self, slot: int, state: HostState) -> int:
        """Put `state`'s cells into the empty `slot`; return how many are there: all, or 0 when there was no room."""
        ...

    def open(self, slot: int, request: GenerationRequest) -> None:
        """Make the sampler of `slot`, or go on with the one that was set aside for this request.

        Any exception fails this request alone.
        """
        ...

    def set_aside(self, slot: int, request_id: str) -> None:
        """Keep the sampler of `slot` with all that it remembers, for the request's next `open`, in whichever slot."""
        ...

    def forget(self, request_id: str) -> None:
        """Free a sampler that was set aside; harmless when there is none."""
        ...

    def close(self, slot: int) -> None:
        """Free the sampler of `slot`; harmless when there is none."""
        ...

    def decode(self, plan: StepPlan) -> StepResult:
        """Run one decode call and sample. What one request did wrong is in its `Sample.error`."""
        ...

    def foresee(self, rows: list[Rows]) -> Foreseen:
        """Run one decode call of the draft model, whose slots have cells of their own. Needs `info.draft`.

        Cells at and behind the first row of each slot go before. At most one output each.
        """
        ...

    def shutdown(self) -> None:
        """Free everything."""
        ...


BackendLoader = Callable[[Callable[[float], None]], Backend]
"""Loads a model in the calling thread; its argument takes progress 0 … 1. `ModelFileError`.

What that argument raises ends the load and must come out of it unchanged.
"""


class EngineState(StrEnum):
    """Where the engine stands; it only moves down this list."""

    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"
    """Loading failed or the loop raised; `EngineStatus.error` has the cause."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot as the outside sees it."""

    index: int
    running: bool
    request_id: str | None
    n_ctx: int
    prompt_tokens: int
    computed_tokens: int
    """Tokens in the KV cache, of a running request or of a kept prefix."""
    cached_tokens: int
    """Of the prompt, those that were not computed again."""
    generated_tokens: int
    reserved_cells: int


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A snapshot; counters only grow."""

    state: EngineState
    load_progress: float
    error: str | None
    slots: int
    n_ctx: int
    kv_cells: int
    running: int
    waiting: int
    reserved_cells: int
    idle_cells: int
    """Cells that hold finished prefixes."""
    has_work: bool
    """Something that it could do now."""
    counters: Mapping[str, int]
    step_seconds: float
    """Time spent in decode calls."""
    last_step: float
    """Monotonic time at which the last step ended."""
    held: bool = False
    """Nothing that waits gets a slot; see `Engine.hold`."""
    pins: int = 0
    """Prompts that are to be kept ready."""
    pins_kept: int = 0
    """Of these, those that are in host memory."""
    preempted: int = 0
    """Requests that have begun, gave up their slot to a better class and wait for one again."""
    host_bytes: int = 0
    """Host memory that holds prefixes."""
    host_entries: int = 0
    """Prefixes in host memory."""


Watch = Callable[[Event], None]
"""Told on the event loop of a generation's start and its end, whether somebody reads it or not."""


class TokenStreamLike(Protocol):
    """The events of one generation, on the event loop."""

    @property
    def request_id(self) -> str:
        """The id it was submitted with."""
        ...

    async def next_events(self) -> list[Event]:
        """Wait for an event and take all that are there. Empty once the terminal one was taken."""
        ...

    def abort(self) -> None:
        """Give up: frees the slot within one step. Idempotent; a no-op after the terminal event."""
        ...


class Engine(Protocol):
    """What the gateway sees. Called on the event loop."""

    @property
    def model(self) -> tuple[ModelInfo, Tokenizer]:
        """Facts and vocabulary. Raises `ModelLoading` or `EngineDead` when there is none."""
        ...

    def submit(self, request: GenerationRequest, watch: Watch | None = None) -> TokenStreamLike:
        """Let a request wait for a slot by its rank. `ModelLoading`, `Draining` or `EngineDead`."""
        ...

    def prefill_seconds(self, request: GenerationRequest) -> float:
        """Estimate what computing its prompt would take, less what is cached or being computed."""
        ...

    def hold(self, *, held: bool) -> None:
        """Give no slot to what waits, until told otherwise. What runs goes on."""
        ...

    def warm(self) -> None:
        """Look anew at what is pinned, and compute what is not there when nobody waits."""
        ...

    def status(self) -> EngineStatus:
        """A snapshot."""
        ...

    def slot_views(self) -> list[SlotView]:
        """One entry per slot."""
        ...
