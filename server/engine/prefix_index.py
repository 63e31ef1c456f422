"""Which cached tokens can be shared with whom.

Where the KV type makes that worth something, reuse is cut down to multiples of `ALIGN`, and at least `ALIGN`
prompt tokens are computed again: with that, chunked and reused runs group their rows as a fresh run
does, which keeps Q8_0 KV bitwise equal. Elsewhere all is reused but a prompt's last token.

Tokens are compared as the bytes of their ids: a look at 256 slots takes microseconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING

from server.core.request import GenerationRequest

if TYPE_CHECKING:
    from server.engine.sequence import Sequence as Running
    from server.engine.slots import Slot

ALIGN = 8
"""Rows; prefill chunks end at multiples of it, and so does reuse unless less is asked of it."""

LEAST_SHARED = 8
"""Tokens. Nearly all prompts of a template have some first ones in common."""

MIN_PREFILL_ROWS = 2 * ALIGN
"""With this budget or more `chunk_rows` always makes progress, wherever the chunk starts."""

MIN_AWAITED_ROWS = 8 * ALIGN
"""Fewer rows are computed again at once: to wait for them costs a step, which costs about as much."""

TOKEN_BYTES = 4


class Missed(StrEnum):
    """Why a request found no cells to share."""

    NONE = "none"
    """Nothing that is cached begins alike."""
    TOO_SHORT = "too_short"
    """What begins alike is shorter than `LEAST_SHARED` tokens, or the prompt is."""
    SCOPE = "scope"
    """The cells belong to another cache scope."""
    COMPUTING_ELSEWHERE = "computing_elsewhere"
    """They are being computed, in another cache scope."""
    EVICTED = "evicted"
    """They were cached, and had to make room."""
    UNSHAREABLE = "unshareable"
    """Their slot is in use, and this kind of model can neither share nor copy its cells."""
    FORBIDDEN = "forbidden"
    """The request does not want any."""
    FAILED = "failed"
    """They were found, and could not be copied."""


def token_key(tokens: Iterable[int]) -> bytes:
    """Return the bytes that stand for `tokens`, `TOKEN_BYTES` each."""
    return array("i", tokens).tobytes()


def common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Count equal elements at the start of both, by slice comparisons in C."""
    limit = min(len(left), len(right))
    if limit == 0 or left[0] != right[0]:
        return 0
    if left[:limit] == right[:limit]:
        return limit
    same, different = 1, limit
    while different - same > 1:
        middle = (same + different) // 2
        if left[same:middle] == right[same:middle]:
            same = middle
        else:
            different = middle
    return same


def reusable_tokens(
    prompt: bytes, cached: bytes, *, partial_removal: bool, align: int = ALIGN
) -> int:
    """Return how many cells that hold `cached` a request for `prompt` may keep; both are keys.

    A multiple of `align`, and as many tokens or more are left to compute. Without `partial_removal` (recurrent
    memories) a cached sequence is taken whole or not at all.
    """
    common = common_prefix_length(prompt, cached) // TOKEN_BYTES
    prompt_tokens = len(prompt) // TOKEN_BYTES
    if not partial_removal:
        whole = common == len(cached) // TOKEN_BYTES and common < prompt_tokens
        return common if whole else 0
    return _whole(min(common, prompt_tokens - align), align)


def chunk_rows(start: int, end: int, budget: int, align: int = ALIGN) -> int:
    """Rows of `start` … `end` to prefill now, at most `budget`, leaving `align` or more, or none.

    Zero when a budget below `MIN_PREFILL_ROWS` does not reach the next multiple of `align`.
    """
    if end - start <= budget:
        return end - start
    stop = min(start + budget, end - align) // align * align
    return max(0, stop - start)


@dataclass(slots=True)
class Match:
    """The longest prefix to be had now, and a longer one that is being computed."""

    cells: int = 0
    source: Slot | None = None
    """Who holds them."""
    awaited: int = 0
    leader: Running | None = None
    """Runs, and will hold `awaited` cells."""


def find(
    slots: Iterable[Slot],
    sequence: Running,
    *,
    partial_removal: bool = True,
    turn: float = 0,
    align: int = ALIGN,
) -> Match:
    """Look for the longest prefix of a prompt in the slots of its scope; what is public, in all others, too.

    Only who was admitted before `turn` can be waited for: so nobody waits for himself. Of several who will hold
    equally much the first that was admitted computes it.
    """
    match, prompt, request = Match(), sequence.key, sequence.request
    for slot in sorted(slots, key=_turn):
        key, other = slot.key, slot.sequence
        if not key or other is sequence or not (most := shareable(slot, request)):
            continue
        if partial_removal:
            holds = other is None or other.computed >= match.cells + align
            leads = other is not None and other.turn < turn
            least = min(
                match.cells + align if holds else len(prompt),
                match.awaited + align if leads else len(prompt),
            )
            if least > most or not _agree(prompt, key, max(least, LEAST_SHARED), align):
                continue
        cells = awaited = reusable_tokens(prompt, key, partial_removal=partial_removal, align=align)
        if awaited > most:
            cells = awaited = _whole(int(most), align) if partial_removal else 0
        if other is not None:
            cells = min(cells, _whole(other.computed, align))
            if other.turn < turn and awaited > match.awaited:
                match.awaited, match.leader = awaited, other
        if cells > match.cells:
            match.cells, match.source = cells, slot
    if match.awaited < match.cells + MIN_AWAITED_ROWS:
        match.awaited, match.leader = 0, None
    return match


def shareable(slot: Slot, request: GenerationRequest) -> float:
    """How many of a slot's first cells a request may have: all of its scope's, what is public of others'."""
    if slot.scope == request.cache_scope:
        return inf
    return min(slot.public, request.public_tokens)


def _turn(slot: Slot) -> int:
    """Idle slots first, then in order of admission."""
    return 0 if slot.sequence is None else slot.sequence.turn


def _whole(cells: int, align: int) -> int:
    """Return the largest multiple of `align` up to `cells`; 0 where that is not worth it."""
    whole = cells // align * align
    return whole if whole >= LEAST_SHARED else 0


def _agree(prompt: bytes, key: bytes, tokens: int, align: int) -> bool:
    """Whether a request for `prompt` may keep `tokens` cells of `key` or more. The last few of them tell most apart."""
    end = tokens * TOKEN_BYTES
    start = end - LEAST_SHARED * TOKEN_BYTES
    return (
        end + align * TOKEN_BYTES <= len(prompt)
        and key.startswith(prompt[start:end], start)
        and key.startswith(memoryview(prompt)[:start])
    )


_WEIGHT = [
    Missed.NONE,
    Missed.TOO_SHORT,
    Missed.COMPUTING_ELSEWHERE,
    Missed.SCOPE,
    Missed.UNSHAREABLE,
]
"""Of several reasons the last one is told."""


def why_missed(
    slots: Iterable[Slot],
    sequence: Running,
    *,
    evicted: bool,
    align: int = ALIGN,
    sharing: bool = False,
) -> Missed:
    """Say why `find` found nothing for `sequence`. `evicted`: its beginning had to make room.

    `sharing`: had it been worth it, any slot could have shared its cells, or given copies.
    """
    if not sequence.request.reuse_prefix:
        return Missed.FORBIDDEN
    if evicted:
        return Missed.EVICTED
    reason = Missed.NONE
    first, probe = sequence.key[:TOKEN_BYTES], sequence.key[: LEAST_SHARED * TOKEN_BYTES]
    enough = (LEAST_SHARED + align) * TOKEN_BYTES
    for slot in slots:
        if slot.sequence is sequence or not slot.key.startswith(first):
            continue
        alike = len(sequence.key) >= enough and slot.key.startswith(probe)
        if slot.scope == sequence.request.cache_scope:
            found = Missed.UNSHAREABLE if alike and not sharing else Missed.TOO_SHORT
        elif alike:
            found = Missed.SCOPE if slot.cells >= LEAST_SHARED else Missed.COMPUTING_ELSEWHERE
        else:
            continue
        reason = max(reason, found, key=_WEIGHT.index)
    return reason
