"""Rules between settings, beyond the range of each one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.engine.prefix_index import MIN_PREFILL_ROWS
from server.settings.quantities import format_size

if TYPE_CHECKING:
    from server.settings.gateway import GpuGuardSettings
    from server.settings.schema import EngineSettings

_UNQUANTIZED = ("auto", "f16", "f32", "bf16")


@dataclass(frozen=True, slots=True)
class Conflict:
    """`fields` of one section do not go together; the first is what the message speaks about.

    Those of a section within it are written with dots.
    """

    fields: tuple[str, ...]
    message: str


class Conflicts(ValueError):
    """Raised within a pydantic validator; carries all conflicts of a section."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        super().__init__("; ".join(conflict.message for conflict in conflicts))
        self.conflicts = tuple(conflicts)


def engine_conflicts(engine: EngineSettings) -> list[Conflict]:
    """Everything in the engine section that does not go together."""
    return [
        *_cache_conflicts(engine),
        *_attention_conflicts(engine),
        *_batch_conflicts(engine),
        *_forced(engine),
    ]


def guard_conflicts(guard: GpuGuardSettings, reserve: int) -> Iterator[Conflict]:
    """Yield what would hold the line although the card is as full as it was planned to be."""
    low, high = guard.thresholds(reserve)
    if high > reserve:
        yield Conflict(
            ("gateway.gpu_guard.high", "memory.reserve"),
            f"must be at most memory.reserve ({format_size(reserve)}), which is all that a plan "
            f"leaves free; it is {format_size(high)}",
        )
    if low > high:
        yield Conflict(
            ("gateway.gpu_guard.low", "gateway.gpu_guard.high"),
            f"must be at most gateway.gpu_guard.high ({format_size(high)}); it is {format_size(low)}",
        )


def draft_conflict(engine: EngineSettings) -> Conflict | None:
    """Return what keeps a draft model from being of any use."""
    for name, value, drafts in (
        ("deterministic", "true", not engine.deterministic),
        ("speculation", "off", engine.speculation != "off"),
        ("n_ubatch", "1", engine.n_ubatch > 1),
    ):
        if not drafts:
            return Conflict(
                ("model.draft", f"engine.{name}"),
                f"must be left out with engine.{name}: {value}, for nothing is drafted then; or leave out "
                f"engine.{name}",
            )
    return None


def _cache_conflicts(engine: EngineSettings) -> Iterator[Conflict]:
    slots, n_ctx, cells = engine.slots, engine.n_ctx, engine.effective_kv_cells
    if slots == "auto" or n_ctx == "auto" or cells == "auto":
        return  # the planner keeps to the same rules
    whole = slots * n_ctx
    if cells < n_ctx:
        yield Conflict(
            ("kv_cells", "n_ctx"),
            f"must be at least n_ctx ({n_ctx}), or no request could use its whole context; "
            f"it is {cells}",
        )
    elif (engine.kv_layout == "split" or engine.deterministic) and cells != whole:
        why = "deterministic" if engine.deterministic else "kv_layout split"
        yield Conflict(
            ("kv_cells", "kv_layout", "slots", "n_ctx"),
            f"must equal slots × n_ctx ({slots} × {n_ctx} = {whole}) with {why}; it is {cells}",
        )


def _attention_conflicts(engine: EngineSettings) -> Iterator[Conflict]:
    if engine.flash_attention == "off" and engine.effective_kv_type not in _UNQUANTIZED:
        yield Conflict(
            ("flash_attention", "kv_type", "deterministic"),
            f"must be auto or on with the quantized kv_type {engine.effective_kv_type}",
        )


def _batch_conflicts(engine: EngineSettings) -> Iterator[Conflict]:
    least = (1 if engine.slots == "auto" else engine.slots) + MIN_PREFILL_ROWS
    # One graph holds all rows of a step; deterministic graphs have one, so the call is the limit.
    limit_name = "n_batch" if engine.deterministic else "n_ubatch"
    limit = engine.n_batch if engine.deterministic else engine.effective_n_ubatch
    if limit < least:
        yield Conflict(
            (limit_name, "slots"),
            f"must be at least slots + {MIN_PREFILL_ROWS} ({least}), one row per running request "
            f"and some for prompts; it is {limit}",
        )
    for name in ("n_ubatch", "max_prefill_rows", "max_prefill_rows_decoding"):
        rows: int | None = getattr(engine, name)
        # A default gives way (the `effective_…` properties); only what somebody wrote conflicts.
        if name in engine.model_fields_set and rows is not None and rows > engine.n_batch:
            yield Conflict(
                (name, "n_batch"), f"must be at most n_batch ({engine.n_batch}); it is {rows}"
            )


def _forced(engine: EngineSettings) -> Iterator[Conflict]:
    if not engine.deterministic:
        return
    if engine.kv_layout == "unified":
        # Cells of several sequences interleave there, and rounding depends on where they lie.
        yield Conflict(
            ("kv_layout", "deterministic"),
            "must be split, or be left out, when deterministic is true; it is unified",
        )
    for name, forced in (("kv_type", "q8_0"), ("n_ubatch", 1)):
        value = getattr(engine, name)
        if name in engine.model_fields_set and value != forced:
            yield Conflict(
                (name, "deterministic"),
                f"must be {forced}, or be left out, when deterministic is true; it is {value}",
            )
