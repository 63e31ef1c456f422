"""What this machine has for models: the card, if llama.cpp can use it, and system memory."""

from __future__ import annotations

from server.assembly.freed import cards_to_plan_for
from server.catalog.plan import Memory, gib, repacked_types
from server.core.clock import Clock, SystemClock
from server.core.errors import ConfigError
from server.llama.gpu_build import gpu_mismatch
from server.llama.main_card import main_card
from server.ops.gpu import Card, read_cards
from server.ops.machine import available_memory, cpu_flags
from server.settings import Settings
from server.supervisor.page import Page

_MOST_HOST_CACHE = 8 * 2**30


def refuse_cpu_build(settings: Settings) -> None:
    """Raise `ConfigError` where a card is there that this build of llama.cpp cannot use.

    Unless that is meant: the first model has no layers on it.
    """
    cards = read_cards()
    if not cards or settings.model.n_gpu_layers == 0:
        return
    refusal = gpu_mismatch(cards, supports_offload())
    if refusal is not None:
        raise ConfigError(refusal)


def machine_memory(
    settings: Settings, *, gpu_wanted: bool, page: Page | None = None, clock: Clock | None = None
) -> Memory:
    """Return what models may be planned for. `gpu_wanted`: some model has layers on the GPU.

    `page`: of a worker, which may have to wait for what the last one leaves behind.
    """
    reserve = settings.memory.reserve
    cards = cards_to_plan_for(page, read_cards, clock or SystemClock()) if gpu_wanted else []
    flags = repacked_types(cpu_flags())
    if not cards or not supports_offload():
        left = _ram(settings, reserve)
        return Memory(cpu_available=left, reserve=reserve, repacked=flags)
    card = main_card(cards, settings.model.main_gpu)
    return Memory(
        gpu_total=_of_card(card, settings.memory.vram),
        gpu_free=card.free,
        cpu_available=_ram(settings, 0),
        gpu_name=card.name,
        gpu_bus_id=card.bus_id,
        reserve=reserve,
        repacked=flags,
    )


def supports_offload() -> bool:
    """Tell whether llama.cpp was built for a GPU and finds one."""
    # Imported here: the native library is slow to load, and only machines with a card need it yet.
    from server.llama.native import library  # noqa: PLC0415

    return library().supports_gpu_offload()


def host_cache(settings: Settings, memory: Memory, planned: int) -> int:
    """Bytes of system memory for prefixes that leave the KV cache; `planned`: what all models take by plan.

    `auto` is a quarter of what is available, at most 8 GiB, and never more than the models leave.
    """
    wish = settings.engine.host_cache
    if wish != "auto":
        return wish
    available = available_memory()
    if available is None:
        return 0
    left = available if memory.cpu_available is None else memory.cpu_available
    return max(0, min(available // 4, _MOST_HOST_CACHE, left - planned))


def _ram(settings: Settings, reserve: int) -> int | None:
    """What of the system memory models may use; None: not known, not limited. `ConfigError`: too much is wished."""
    available, most = available_memory(), settings.memory.ram
    if available is None:
        return most
    wish = settings.engine.host_cache
    cache = 0 if wish == "auto" else wish
    if cache > available:
        raise ConfigError(
            f"engine.host_cache is {gib(cache)}, but only {gib(available)} of system memory are available. "
            "Lower it, or leave it out."
        )
    left = max(0, available - reserve - cache)
    return left if most is None else min(left, most)


def _of_card(card: Card, vram: int | None) -> int:
    return card.total if vram is None else min(vram, card.total)
