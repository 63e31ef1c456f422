"""Makes a chat fit by leaving out whole oldest turns, for agents that ask for it.

A turn is what a user says (messages of users in a row count as one) with all that answers it. Turns
that a tool result ties together are one, so a tool call and its results never part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

_KEPT = ("system", "developer")


def drop_oldest_turns(
    messages: Sequence[Message], fits: Callable[[Sequence[Message]], bool]
) -> tuple[list[Message], int] | None:
    """Return the messages without as few oldest turns as possible, and how many those are.

    System messages and the last turn stay, and so does the order. None: even those do not fit.
    `fits` must be true of fewer turns when it is true of more; it is asked O(log turns) times.
    """
    if fits(messages):
        return list(messages), 0
    turn_of, count = _turns(messages)
    most = count - 1
    if most < 1 or not fits(_without(messages, turn_of, most)):
        return None
    # `low` dropped turns are known not to be enough, `high` to be.
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if fits(_without(messages, turn_of, middle)):
            high = middle
        else:
            low = middle
    return _without(messages, turn_of, high), high


def _without(
    messages: Sequence[Message], turn_of: Sequence[int | None], dropped: int
) -> list[Message]:
    return [
        message
        for message, turn in zip(messages, turn_of, strict=True)
        if turn is None or turn >= dropped
    ]


def _turns(messages: Sequence[Message]) -> tuple[list[int | None], int]:
    """Return each message's turn, counted from 0, None for those that always stay; and the count."""
    turn_of: list[int | None] = []
    turn, last_role = -1, ""
    for message in messages:
        role = message["role"]
        if role in _KEPT:
            turn_of.append(None)
            continue
        if turn < 0 or (role == "user" and last_role != "user"):
            turn += 1
        turn_of.append(turn)
        last_role = role
    return _tied(messages, turn_of, turn + 1)


def _tied(
    messages: Sequence[Message], turn_of: Sequence[int | None], count: int
) -> tuple[list[int | None], int]:
    """Make one of all turns from a tool call to its last result."""
    first = list(range(count))  # turn → first turn of those it is tied to
    calls: dict[Any, int] = {}
    latest: int | None = None
    for message, turn in zip(messages, turn_of, strict=True):
        if turn is None:
            continue
        for call in message.get("tool_calls") or ():
            latest = turn
            calls[call.get("id")] = turn
        if message["role"] in ("tool", "function"):
            start = calls.get(message.get("tool_call_id"), latest)
            if start is not None:
                first[start : turn + 1] = [min(first[start : turn + 1])] * (turn + 1 - start)
    starts = sorted(set(first))
    number = {start: place for place, start in enumerate(starts)}
    return [None if turn is None else number[first[turn]] for turn in turn_of], len(starts)
