"""Which models are in memory: who may load next, and who has to go for it. Pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.gateway.host import Host, HostState
from server.gateway.memory import Budget, Footprint, total


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now."""

    start: Host | None
    """May begin to load: its memory is free."""
    leaving: tuple[Host, ...]
    """Let nobody in any more, and are unloaded once the last one has left."""


def decide(hosts: Sequence[Host], wanted: Sequence[Host], budget: Budget, now: float) -> Decision:
    """Decide from the states alone.

    `wanted`: hosts that somebody waits for, the longest wait first. They are served in that order:
    if a later one could overtake because it is small, a large one might never find its memory.
    One comes or goes at a time, since a load that was ended may still be at work. What leaves for
    another is what was used longest ago, idle before busy.
    """
    leaving = [host for host in hosts if _must_leave(host, wanted, now)]
    head = next((host for host in wanted if host.state is not HostState.READY), None)
    if head is None or head.loaded:
        return Decision(None, tuple(leaving))
    taken = total(host.spec.footprint for host in hosts if host.loaded)
    if budget.holds(taken + head.spec.footprint):
        busy = any(host.state in (HostState.LOADING, HostState.UNLOADING) for host in hosts)
        return Decision(None if busy else head, tuple(leaving))
    staying = [
        host
        for host in hosts
        if host.state in (HostState.LOADING, HostState.READY) and host not in leaving
    ]
    # Who waits for one of these was there before; they are let in first, and then it may go.
    earlier = wanted[: wanted.index(head)]
    leaving += _victims(staying, earlier, head.spec.footprint, budget)
    return Decision(None, tuple(leaving))


def _must_leave(host: Host, wanted: Sequence[Host], now: float) -> bool:
    if host.state is not HostState.READY:
        return False
    expires = host.expires()
    return host.leaving or (expires is not None and now >= expires and host not in wanted)


def _victims(
    staying: Sequence[Host], earlier: Sequence[Host], need: Footprint, budget: Budget
) -> list[Host]:
    """Return who makes room, none of them in vain: idle before busy, longest ago used first."""
    kept = [h for h in staying if h.state is HostState.READY and h not in earlier]
    kept.sort(key=lambda host: (host.holders > 0, host.last_used))
    fixed = [host for host in staying if host not in kept]

    def enough(stay: Sequence[Host]) -> bool:
        return budget.holds(total(host.spec.footprint for host in (*stay, *fixed)) + need)

    victims: list[Host] = []
    while kept and not enough(kept):
        victims.append(kept.pop(0))
    # A small one that went first is no help once a large one has to go as well.
    for host in reversed(victims[:-1]):
        if enough([*kept, host]):
            victims.remove(host)
            kept.append(host)
    return victims
