"""Which quantization to take when none is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.catalog.hub_files import Candidate

_CONTEXT_SHARE = 10
_CONTEXT_BYTES = 1 << 29


@dataclass(frozen=True, slots=True)
class Chosen:
    """A choice and the sentence that tells why."""

    candidate: Candidate
    reason: str
    fits: bool = True
    """False when nothing fits and `candidate` is the smallest."""


QuantChooser = Callable[[Sequence[Candidate]], Chosen]
"""Gets at least one candidate, largest first."""


def eligible(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates of an automatic choice, largest first: quantized ones, if there are any.

    16-bit weights are twice the size of Q8_0 and half as fast, with no difference that anybody measured; they are taken
    when they are named.
    """
    return [candidate for candidate in found if candidate.quantized] or list(found)


def by_size(memory: int, where: str) -> QuantChooser:
    """Choose by a rule of thumb: the weights, a tenth of them and 0.5 GiB fit into `memory` bytes.

    For when the planner cannot be asked. `where` names the memory: "24 GiB on the GPU".
    """

    def choose(found: Sequence[Candidate]) -> Chosen:
        listed = eligible(found)
        for candidate in listed:
            need = candidate.size + candidate.size // _CONTEXT_SHARE + _CONTEXT_BYTES
            if need <= memory:
                reason = (
                    f"{candidate.quant} ({size_text(candidate.size)}) is the largest that fits "
                    f"into {where}, with a tenth and 0.5 GiB for context"
                )
                return Chosen(candidate, reason)
        smallest = listed[-1]
        reason = f"the smallest, {smallest.quant} ({size_text(smallest.size)}), exceeds {where}"
        return Chosen(smallest, reason, fits=False)

    return choose


def size_text(count: int) -> str:
    """Write bytes for people, in powers of ten as the hub does: 19.8 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= factor:
            scaled = count / factor
            return f"{scaled:.0f} {unit}" if abs(scaled) >= 100 else f"{scaled:.3g} {unit}"
    return f"{count} B"
