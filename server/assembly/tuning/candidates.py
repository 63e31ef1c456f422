"""What is tried, in the order of what it may bring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from server.assembly.engine import scheduler_limits
from server.assembly.sizing import Sized
from server.engine.prefix_index import MIN_PREFILL_ROWS
from server.settings.machine import logical_cpus, physical_cores

Changes = Mapping[str, Any]
"""Setting → value: `engine.n_ubatch`, `model.extra_buffers`, …"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One setting with another value."""

    setting: str
    value: int | str | bool


def candidates(sized: Sized, *, on_card: bool) -> Iterator[Candidate]:
    """Yield what is worth trying for a context with default settings; explicit ones are left alone."""
    sizes, plan = sized.sizes, sized.plan
    whole = on_card and plan.n_gpu_layers >= plan.n_layers
    yield from _of("engine.n_ubatch", (1024, 2048) if on_card else (256, 1024, 128))
    if sizes.kv_cells == sizes.slots * sizes.n_ctx:
        yield Candidate("engine.kv_layout", _other(sizes.kv_layout, "split", "unified"))
    yield from _of("engine.threads", _threads(whole=whole))
    yield from _of(
        "engine.threads_batch", (logical_cpus(),) if logical_cpus() != physical_cores() else ()
    )
    if on_card and not whole:
        yield from _of("model.n_gpu_layers", (plan.n_gpu_layers * 3 // 4, 0))
    if not on_card:
        yield Candidate("model.extra_buffers", value=False)
    if sizes.kv_type in ("f16", "bf16", "f32"):
        now = "on" if sizes.flash_attention else "off"
        yield Candidate("engine.flash_attention", _other(now, "on", "off"))


def prompt_candidates(sized: Sized) -> Iterator[Candidate]:
    """Yield how many rows of prompts a step may have, alone and beside streams: parts of the largest call."""
    limits = scheduler_limits(sized)
    parts = [limits.max_rows // part for part in (8, 4, 2)]
    alone = [rows for rows in parts if MIN_PREFILL_ROWS <= rows < limits.prefill_rows]
    yield from _of("engine.max_prefill_rows", tuple(alone))
    if limits.slots > 1:
        beside = [r for r in parts[:2] if MIN_PREFILL_ROWS <= r < limits.prefill_rows_decoding]
        yield from _of("engine.max_prefill_rows_decoding", tuple(beside))


def is_explicit(sized: Sized, setting: str) -> bool:
    """Whether somebody has set it: then it is theirs."""
    section, _, name = setting.partition(".")
    group = sized.group
    written = group.engine if section == "engine" else group.model
    return name in written.model_fields_set


def _other(now: str, one: str, another: str) -> str:
    return another if now == one else one


def _of(setting: str, values: tuple[int, ...]) -> Iterator[Candidate]:
    yield from (Candidate(setting, value) for value in dict.fromkeys(values))


def _threads(*, whole: bool) -> tuple[int, ...]:
    """Numbers of threads beside the default; with all layers on a card they have little to do."""
    cores, cpus = physical_cores(), logical_cpus()
    fewer = (cores - 1, cores * 3 // 4) if cores >= 4 else ()
    tried = (1, cores // 2) if whole else (cpus, *fewer)
    return tuple(n for n in dict.fromkeys(tried) if n >= 1 and n != cores)
