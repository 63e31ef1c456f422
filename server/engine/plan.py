"""What one step shall do and what came of it: plain data between scheduler and backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from server.core.errors import OnegpuError
from server.core.events import SampledLogprobs
from server.core.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence enters `slot`: cells at positions ≥ `keep` go, a sampler for `request` is made."""

    slot: int
    keep: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Truncation:
    """Cells of `slot` at positions ≥ `keep` go: for room, or to redo what a failed step left."""

    slot: int
    keep: int


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `cells` cells of `source` become those of the empty `slot`, too. Shared, not moved."""

    source: int
    slot: int
    cells: int


Edit = Admission | Truncation | Copy


@dataclass(slots=True)
class Rows:
    """Consecutive tokens of one sequence within one decode call.

    `tokens[i]` stands at position `start + i`. With `output`, the last row's logits are sampled.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    output: bool


@dataclass(slots=True)
class StepPlan:
    """One decode call: `rows` sorted by slot, at most one entry per slot."""

    rows: list[Rows]
    decode_rows: int = 0
    prefill_rows: int = 0


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
    """The outcome for one `Rows` with `output`: a token, or this request's own error."""

    token: int
    logprobs: SampledLogprobs | None = None
    error: OnegpuError | None = None


@dataclass(slots=True)
class StepResult:
    """What a decode call did."""

    code: DecodeCode = DecodeCode.OK
    samples: list[Sample] = field(default_factory=list)
    """With `OK`: one per `Rows` with `output`, in plan order. Otherwise empty."""
    cells: dict[int, int] = field(default_factory=dict)
    """With `ABORTED` and `FAILED`: planned slot → cells it really holds (positions 0 … cells-1)."""
    reason: str = ""
    """What was wrong, for the log, where the backend knows more than the code."""
