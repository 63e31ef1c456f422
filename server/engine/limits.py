"""What the scheduler keeps to."""

from __future__ import annotations

from dataclasses import dataclass

from server.core.request import GenerationRequest
from server.engine.prefix_index import ALIGN, MIN_PREFILL_ROWS


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Sizes that admission and planning keep to."""

    slots: int = 4
    n_ctx: int = 4096
    """Most tokens, prompt and output, of one sequence."""
    kv_cells: int = 16384
    max_rows: int = 512
    """Rows of one decode call."""
    prefill_rows: int = 512
    """Most prefill rows of a step while nothing decodes."""
    prefill_rows_decoding: int = 128
    """Most prefill rows of a step while a stream waits for its next token."""
    reuse_align: int = ALIGN
    """Reuse of cached tokens ends at multiples of so many rows, and as many of a prompt are computed at least."""
    cold_steps: int = 0
    """Steps after which idle cells leave a cache that all slots share for host memory, if there are many; 0: never."""
    warm_cells: int = 1024
    """So many idle cells may stay: their tax is a few percent of a step at most."""
    target_gap: float | None = 0.3
    """Seconds that a step with streams should take at most, as far as was measured; None: whatever it takes."""
    draft_rows: int = 0
    """Most rows of a step for tokens of drafts, over all sequences; 0: nothing is drafted."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for sizes with which prefill could starve or nothing could run."""
        if self.max_rows < self.slots + MIN_PREFILL_ROWS:
            message = f"max_rows must be at least slots + {MIN_PREFILL_ROWS}"
            raise ValueError(message)
        if min(self.prefill_rows, self.prefill_rows_decoding) < MIN_PREFILL_ROWS:
            message = f"prefill_rows and prefill_rows_decoding must be at least {MIN_PREFILL_ROWS}"
            raise ValueError(message)
        if min(self.slots, self.n_ctx) < 1 or self.kv_cells < self.n_ctx:
            message = "slots and n_ctx must be positive and kv_cells at least n_ctx"
            raise ValueError(message)

    def require(self, request: GenerationRequest) -> None:
        """Raise `ValueError` for what could never run: the caller checks lengths first."""
        tokens = len(request.prompt) + request.max_tokens
        if not request.prompt or request.max_tokens < 1 or tokens > self.n_ctx:
            message = (
                f"{request.request_id}: a prompt of {len(request.prompt)} and {request.max_tokens} "
                f"more tokens cannot run with n_ctx {self.n_ctx}"
            )
            raise ValueError(message)
