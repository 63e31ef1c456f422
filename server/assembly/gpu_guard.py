"""The guard of the card that models are on, and the thread that reads it."""

from __future__ import annotations

import asyncio
import logging

from server.catalog.plan import Memory
from server.core.clock import Clock
from server.gateway.gpu_guard import CardGuard, GuardLimits
from server.gateway.gpu_shedding import GpuGuard, WatchedCard
from server.gateway.hosts import HostManager
from server.ops.gpu_sampler import GpuSampler, NvmlReader
from server.settings import Settings

log = logging.getLogger(__name__)

_SILENT_READS = 5
"""After so many reads that did not come the guard is blind, and after as many seconds at least."""


def build_guard(settings: Settings, memory: Memory, hosts: HostManager, clock: Clock) -> GpuGuard:
    """Make the guard, or one that is off, and say which."""
    limits = guard_limits(settings)
    on_card = tuple(host for host in hosts.hosts if host.spec.footprint.gpu)
    off = _why_off(settings, memory, on_card=bool(on_card))
    if off is not None:
        log.info("GPU guard: off: %s", off)
        return GpuGuard((), clock, hosts.expire, off)
    name = f"{memory.gpu_name} ({memory.gpu_bus_id})"
    guard = CardGuard(limits, clock.monotonic())
    card = WatchedCard(memory.gpu_bus_id, name, guard, on_card, memory.cuda_context)
    log.info("GPU guard: on for %s. %s", name, _rule(limits))
    return GpuGuard((card,), clock, hosts.expire)


def guard_limits(settings: Settings) -> GuardLimits:
    """Return the limits of a card's guard."""
    guard, reserve = settings.gateway.gpu_guard, settings.memory.reserve
    low, high = guard.thresholds(reserve)
    return GuardLimits(
        rule="used" if guard.mode == "used" else "reserve",
        reserve=reserve,
        low=low,
        high=high,
        used=guard.used / 100,
        used_resume=guard.used_resume / 100,
        hold=guard.hold,
        settle=guard.settle,
        silence=_SILENT_READS * max(1.0, guard.interval),
    )


async def watch_cards(guard: GpuGuard, settings: Settings, clock: Clock) -> None:
    """Read the cards and let the guard see it, until cancelled."""
    if not guard.cards:
        return
    reader = NvmlReader([card.bus_id for card in guard.cards], clock)
    sampler = GpuSampler(reader, settings.gateway.gpu_guard.interval)
    sampler.start(asyncio.get_running_loop(), guard.observe)
    try:
        await guard.watch()
    finally:
        sampler.stop()


def _why_off(settings: Settings, memory: Memory, *, on_card: bool) -> str | None:
    if settings.gateway.gpu_guard.mode == "off":
        return "gateway.gpu_guard.mode says so"
    if not memory.has_gpu or not on_card:
        return "no model is on a GPU"
    if settings.gateway.gpu_guard.mode == "reserve" and settings.memory.reserve == 0:
        return "memory.reserve is 0, so plans leave nothing to watch"
    return None


def _rule(limits: GuardLimits) -> str:
    if limits.rule == "used":
        return f"Nothing new begins while more than {limits.used:.0%} of it is in use"
    return (
        f"Nothing new begins while less than {limits.low // 2**20} MiB are free beyond what is "
        "planned for"
    )
