"""What somebody asks of a plan, and what nobody can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.catalog.plan.kv import KV_BLOCKS
from server.catalog.plan.shape import ModelShape
from server.core.errors import ConfigError

Auto = Literal["auto"]

_MOST_SLOTS = 256


@dataclass(frozen=True, slots=True)
class DraftWish:
    """A draft model: it gets the sizes of the model that it drafts for."""

    shape: ModelShape
    on_gpu: bool = True
    """Whether all of it is on the card, where the model has layers there; else all of it is in system memory."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What somebody asks for; `auto` leaves it to the planner."""

    slots: int | Auto = "auto"
    n_ctx: int | Auto = "auto"
    kv_cells: int | Auto = "auto"
    """`auto`: slots × n_ctx."""
    kv_type: str = "auto"
    n_gpu_layers: int | Literal["auto", "all"] = "auto"
    n_ubatch: int = 512
    n_batch: int = 512
    draft_rows: int = 0
    """Rows of drafts in one decode call; each gives logits."""
    kv_layout: Literal["auto", "unified", "split"] = "auto"
    """What `auto` is, here and for `flash_attention`: `plan.attention`."""
    n_cpu_moe: int | Auto = "auto"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    mmap: bool = True
    mlock: bool = False
    draft: DraftWish | None = None

    def __post_init__(self) -> None:
        """Refuse what no model could have."""
        for name, most in (
            ("slots", _MOST_SLOTS),
            ("n_ctx", 1 << 24),
            ("kv_cells", 1 << 28),
            ("n_ubatch", 1 << 16),
            ("n_batch", 1 << 16),
        ):
            value = getattr(self, name)
            if value != "auto" and not 1 <= value <= most:
                raise ConfigError(f"{name} must be auto or 1 to {most}, not {value}.")
        if self.kv_type not in ("auto", *KV_BLOCKS):
            raise ConfigError(
                f"kv_type must be auto or one of {', '.join(KV_BLOCKS)}, not {self.kv_type!r}."
            )


def check_wishes(wishes: Wishes, n_ctx: int, kv_cells: int, *, unified: bool, flash: bool) -> None:
    """Raise `ConfigError` for wishes that contradict each other."""
    if kv_cells < n_ctx:
        raise ConfigError(
            f"kv_cells ({kv_cells}) must hold at least one full context: raise it, or lower n_ctx ({n_ctx})."
        )
    if not unified and wishes.kv_cells not in ("auto", int(wishes.slots) * n_ctx):
        raise ConfigError(
            "The split layout gives every slot n_ctx cells: leave kv_cells out, or take the unified layout."
        )
    if not flash and KV_BLOCKS[wishes.kv_type][0] > 1:
        raise ConfigError(
            f"A {wishes.kv_type} value cache needs flash attention: set flash_attention to auto or on."
        )
