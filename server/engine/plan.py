"""What one step shall do and what came of it: plain data between scheduler and backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from server.core.errors import OnegpuError
from server.core.events import SampledLogprobs
from server.core.request import GenerationRequest

if TYPE_CHECKING:
    from server.engine.host_memory import Entry


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence enters `slot`: cells at positions ≥ `keep` go, a sampler for `request` is made."""

    slot: int
    keep: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Suspension:
    """A sequence leaves `slot` for a while: its sampler is set aside for the request's next `Admission`."""

    slot: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Truncation:
    """Cells of `slot` at positions ≥ `keep` go: for room, or to redo what a failed step left."""

    slot: int
    keep: int


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `cells` cells of `source` become those of the empty `slot`, too: shared, or copied."""

    source: int
    slot: int
    cells: int


@dataclass(frozen=True, slots=True)
class Park:
    """All cells of `slot`, which hold the tokens of `key` for `scope`, are kept in host memory, too.

    The first `public` of them are for all scopes in which they are public.
    """

    slot: int
    scope: str
    key: bytes
    public: int = 0
    pin: bool = False
    """They are not to go again."""


@dataclass(frozen=True, slots=True)
class Restore:
    """The empty `slot` gets the cells of a prefix in host memory. All of them: what is too many goes next."""

    slot: int
    entry: Entry


MemoryEdit = Truncation | Copy | Park | Restore
Edit = Admission | Suspension | MemoryEdit


@dataclass(slots=True)
class Rows:
    """Consecutive tokens of one sequence within one decode call.

    `tokens[i]` stands at position `start + i`. The last `outputs` rows are sampled, one after the other, until a sample
    is not the token of the next row: the tokens after the first of them are a draft. Cells of rows behind the last
    sampled one go at once.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    outputs: int
    """0: nothing is sampled; 1: no draft."""


@dataclass(slots=True)
class StepPlan:
    """One decode call: `rows` sorted by slot, at most one entry per slot."""

    rows: list[Rows]
    decode_rows: int = 0
    prefill_rows: int = 0
    draft_rows: int = 0
    """Of tokens that nobody has sampled yet."""

    def count(self, counters: Counter[str]) -> None:
        """Add what was computed, once it is."""
        counters["decode_rows"] += self.decode_rows
        counters["prefill_rows"] += self.prefill_rows
        counters["speculative_steps"] += self.draft_rows > 0
        counters["prefill_steps"] += self.prefill_rows > 0
        if self.decode_rows:
            counters["prefill_rows_decoding"] += self.prefill_rows
            counters["prefill_steps_decoding"] += self.prefill_rows > 0


class CallShape(NamedTuple):
    """How decode calls should look, so that the backend takes no longer than it has to."""

    tile_rows: int = 1
    """Rows that a call computes attention for at once, if it has as many; 1 where that makes no difference."""
    chunk_rows: int = 1
    """Rows that a chunk of a prompt should have: with fewer, each takes longer."""
    one_pass: bool = True
    """Whether rows of all slots are computed together, however many each has. Else a call that mixes streams and
    prompts takes no less time than one for each."""


PLAIN_CALLS = CallShape()
"""Any will do."""


class DecodeCode(IntEnum):
    """`llama_decode`'s return codes (`include/llama.h`); anything below -1 counts as `FAILED`."""

    OK = 0
    NO_CELLS = 1
    """No KV cells for the batch; memory unchanged."""
    ABORTED = 2
    """The abort callback fired; earlier ubatches stay in memory."""
    INVALID = -1
    """The batch was malformed; memory unchanged."""
    FAILED = -2
    """Allocation or computation failed; memory in an unknown state until resynchronised."""


@dataclass(slots=True)
class Sample:
    """One token that was drawn, or this request's own error."""

    token: int
    logprobs: SampledLogprobs | None = None
    error: OnegpuError | None = None


@dataclass(slots=True)
class StepResult:
    """What a decode call did."""

    code: DecodeCode = DecodeCode.OK
    samples: list[list[Sample]] = field(default_factory=list)
    """With `OK`: for each `Rows` with `outputs`, in plan order, 1 to `outputs` samples. Otherwise empty.

    All but the last one are the draft's tokens."""
    cells: dict[int, int] = field(default_factory=dict)
    """With `ABORTED` and `FAILED`: planned slot → cells it really holds (positions 0 … cells-1)."""
    passes: int = 1
    """Over the weights: graphs that were computed."""
    reason: str = ""
    """What was wrong, for the log, where the backend knows more than the code."""


@dataclass(slots=True)
class Foreseen:
    """What a decode call of the draft model did."""

    code: DecodeCode = DecodeCode.OK
    """With all but `OK` the planned slots are empty, but those of an `INVALID` one are as they were."""
    tokens: list[int] = field(default_factory=list)
    """With `OK`: for each `Rows` with an output, in plan order, the likeliest next token."""
    reason: str = ""
    """What was wrong, for the log."""
