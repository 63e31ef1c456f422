"""Which quantization fits this machine: asked of the planner, header by header."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from server.catalog.download_choice import Chosen, QuantChooser
    from server.catalog.hub_files import Candidate
    from server.catalog.plan import Memory, Wishes
    from server.settings import Settings


def chooser_for(settings: Settings) -> QuantChooser:
    """Return the chooser for the card of `settings`, the card that is there, or the memory.

    It plans for the whole card, not for what is free now: what runs while something is downloaded need not run later.
    """

    def choose(found: Sequence[Candidate]) -> Chosen:
        from server.catalog.download_choice import by_size, size_text
        from server.catalog.header_source import planned_chooser
        from server.catalog.hub import Hub, HubOptions
        from server.core.errors import ModelFileError

        hub = Hub(HubOptions(endpoint=settings.hub.endpoint, token=settings.hub.token))
        memory = planned_memory(settings)
        try:
            return planned_chooser(hub, memory, planned_wishes(settings))(found)
        except ModelFileError as error:
            # An architecture that the planner does not know: the weights' size is known all the same.
            room = memory.gpu_limit if memory.has_gpu else memory.cpu_available or 0
            chosen = by_size(room, f"{size_text(room)} of memory")(found)
            return replace(chosen, reason=f"{chosen.reason} (not planned: {error.message})")

    return choose


def planned_memory(settings: Settings) -> Memory:
    """Return what a model may take: of `memory.vram`, of the card, or of system memory."""
    from server.catalog.plan import Memory, repacked_types
    from server.llama.main_card import main_card
    from server.ops.gpu import read_cards
    from server.ops.machine import available_memory, cpu_flags

    reserve = settings.memory.reserve
    cards = [] if settings.model.n_gpu_layers == 0 else read_cards()
    card = main_card(cards, settings.model.main_gpu) if cards else None
    total = settings.memory.vram
    if total is None and card is not None:
        total = card.total
    available = available_memory()
    repacked = repacked_types(cpu_flags())
    if total is None:
        left = None if available is None else max(available - reserve, 0)
        return Memory(cpu_available=left, reserve=reserve, repacked=repacked)
    name = None if card is None else card.name
    return Memory(
        gpu_total=total,
        cpu_available=available,
        gpu_name=name,
        reserve=reserve,
        repacked=repacked,
    )


def plan_line(paths: Sequence[Path], settings: Settings) -> str:
    """Say in one line whether a model of these files fits here and how; why not, where it cannot be planned."""
    from server.catalog.gguf import read_header
    from server.catalog.plan import choose, read_shape
    from server.core.errors import OnegpuError

    try:
        headers = [read_header(path) for path in paths]
        if headers[0].metadata.get("general.type") == "adapter":
            return "an adapter, which is planned with its model"
        shape = read_shape(headers)
        choice = choose(shape, planned_wishes(settings), planned_memory(settings))
    except OnegpuError as error:
        return f"unknown: {error.message}"
    best = choice.best
    if best is None:
        return f"does not fit: {choice.reason}"
    where = choice.reason.partition(";")[0]
    return f"fits with {best.slots} × {best.n_ctx} tokens of {best.kv_type} KV: {where}"


def planned_wishes(settings: Settings) -> Wishes:
    """Return what the settings ask for; the KV type is free where nobody set it."""
    from server.catalog.plan import Wishes

    engine = settings.engine
    written = engine.model_fields_set
    kv: Any = engine.effective_kv_type if "kv_type" in written else "auto"
    layers = settings.model.n_gpu_layers
    return Wishes(
        slots=engine.slots,
        n_ctx=engine.n_ctx,
        kv_cells=engine.effective_kv_cells,
        kv_type=kv,
        n_gpu_layers="auto" if layers == 0 else layers,
        kv_layout=engine.kv_layout,
        flash_attention=engine.flash_attention,
        draft_rows=engine.effective_draft_rows,
    )
