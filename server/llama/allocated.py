"""What llama.cpp allocated, read from its log: there is no C function that tells all of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from server.catalog.plan import Allocated

_LINE = re.compile(
    r"(?P<who>\S+): +(?P<buffer>\S+) +(?:DSV4 \S+ )?(?P<what>model|KV|RS|state|LoRA|compute|output) buffer size = +"
    r"(?P<size>[0-9.]+) MiB"
)
_HOST = re.compile(r"CPU|AMX|BLAS|.*_Host")
"""Names of buffers in system memory; every other is a GPU's."""
_FIELDS = {
    "model": "weights",
    "LoRA": "weights",
    "KV": "kv",
    "RS": "kv",
    "state": "kv",
    "compute": "compute",
    "output": "output",
}
_MIB = 1 << 20


def parse_allocated(lines: Iterable[str]) -> Allocated:
    """Add up the "… buffer size = … MiB" lines of one load; two decimals is all they tell.

    A compute buffer is reported anew whenever it is reserved again: its last size counts.
    """
    sums: dict[str, int] = {}
    compute: dict[str, int] = {}
    for line in lines:
        found = _LINE.search(line)
        if found is None:
            continue
        size = round(float(found["size"]) * _MIB)
        side = "cpu" if _HOST.match(found["buffer"]) else "gpu"
        kind = _FIELDS[found["what"]]
        if kind == "compute":
            compute[found["buffer"]] = size
            continue
        # The output buffer is read by the CPU wherever its pages are pinned.
        name = "output_cpu" if kind == "output" else f"{kind}_{side}"
        sums[name] = sums.get(name, 0) + size
    for buffer, size in compute.items():
        name = "compute_cpu" if _HOST.match(buffer) else "compute_gpu"
        sums[name] = sums.get(name, 0) + size
    return Allocated(**sums)
