"""A `Sequence` is one request's state; policy lives in the scheduler, memory in the slots."""

from __future__ import annotations

from enum import IntEnum

from server.core.events import Timings, Usage
from server.core.request import GenerationRequest
from server.engine.detokenizer import Detokenizer
from server.engine.guess import Guess
from server.engine.lookup import Lookup
from server.engine.prefix_index import token_key

BACKGROUND = 3
"""Class, the first part of a rank, of what nobody waits for: it is computed when nothing else is, and makes room."""


class SequenceStatus(IntEnum):
    """Ordered, so that finished is one comparison."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2
    ABORTED = 3
    FAILED = 4


class Sequence:
    """Prompt and generated tokens, and how many of them are in the KV cache.

    There is no prefill phase and no decode phase: `computed` catches up with `len(tokens)`,
    and whenever it does, the next token is sampled.
    """

    __slots__ = (
        "arrival",
        "awaited",
        "cached",
        "computed",
        "detokenizer",
        "first_token_at",
        "guess",
        "key",
        "leader",
        "lookup",
        "overtaken",
        "preemptions",
        "prompt_length",
        "request",
        "slot",
        "started_at",
        "status",
        "stood",
        "submitted_at",
        "tokens",
        "turn",
    )

    def __init__(self, request: GenerationRequest, detokenizer: Detokenizer, now: float) -> None:
        """`now`: monotonic seconds."""
        self.request = request
        self.detokenizer = detokenizer
        self.tokens: list[int] = list(request.prompt)
        self.prompt_length = len(self.tokens)
        self.key = token_key(self.tokens)
        """The prompt, for comparisons; all tokens of one that was preempted."""
        self.computed = 0
        self.cached = 0
        self.leader: Sequence | None = None
        """Computes the first `awaited` tokens of this prompt, too; nothing is computed here meanwhile."""
        self.awaited = 0
        self.lookup: Lookup | None = None
        """Foresees its tokens; None: nothing is drafted."""
        self.guess: Guess | None = None
        """How well the draft model foresees them; None: there is none."""
        self.slot = -1
        self.turn = 0
        """Order of admission to a slot."""
        self.arrival = 0
        """Order of arrival among those that wait."""
        self.overtaken = 0
        """How many that came later got a slot first."""
        self.preemptions = 0
        """How often it gave up its slot."""
        self.stood = 0
        """Tokens that it had in the KV cache when it last did."""
        self.status = SequenceStatus.WAITING
        self.submitted_at = now
        self.started_at: float | None = None
        self.first_token_at: float | None = None

    @property
    def cells_needed(self) -> int:
        """KV cells that it may come to use, shared ones counted in full."""
        return self.prompt_length + self.request.max_tokens

    @property
    def generated(self) -> int:
        """Tokens sampled and kept."""
        return len(self.tokens) - self.prompt_length

    @property
    def draftable(self) -> int:
        """Rows that a draft may have: with one token more, the answer and its reservation are full."""
        return self.request.max_tokens - self.generated - 1

    @property
    def remaining(self) -> int:
        """Tokens not yet in the KV cache."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether the next row is a decode row: one token, sampled by us."""
        return self.generated > 0 and len(self.tokens) - self.computed == 1

    @property
    def running(self) -> bool:
        """Whether it has a slot."""
        return self.status is SequenceStatus.RUNNING

    @property
    def finished(self) -> bool:
        """Whether its terminal event was given."""
        return self.status > SequenceStatus.RUNNING

    @property
    def background(self) -> bool:
        """Whether nobody waits for it."""
        return self.request.rank[0] >= BACKGROUND

    @property
    def preempted(self) -> bool:
        """Whether it has begun and waits for a slot again."""
        return self.status is SequenceStatus.WAITING and self.preemptions > 0

    def preempt(self) -> None:
        """Let it wait again, after its slot was released."""
        self.status = SequenceStatus.WAITING
        self.preemptions += 1
        self.stood = max(self.stood, self.computed)
        self.key = token_key(self.tokens)
        self.computed, self.leader, self.awaited = 0, None, 0

    def usage(self) -> Usage:
        """Token counts until now."""
        return Usage(self.prompt_length, self.generated, self.cached)

    def timings(self, now: float) -> Timings:
        """Seconds queued, in prefill and in decode until `now`."""
        started = self.started_at if self.started_at is not None else now
        first = self.first_token_at if self.first_token_at is not None else now
        return Timings(started - self.submitted_at, first - started, now - first)

    def __repr__(self) -> str:
        """Show where it stands, for logs and assertions."""
        return (
            f"<Sequence {self.request.request_id} {self.status.name} slot={self.slot} "
            f"prompt={self.prompt_length} computed={self.computed} generated={self.generated}>"
        )
