"""Headers of GGUF files that are not here: as many bytes from the front as it takes, by range requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from server.catalog.download_choice import Chosen, QuantChooser, eligible, size_text
from server.catalog.gguf_cursor import Incomplete
from server.catalog.gguf_header import GgufHeader, parse_header
from server.catalog.gguf_split import gather
from server.catalog.hub import Hub
from server.catalog.hub_files import Candidate
from server.catalog.plan import Memory, Plan, Wishes, choose, read_shape
from server.core.errors import ModelFileError

Fetch = Callable[[str, int, int], tuple[bytes, int | None]]
"""Bytes of a file from one place up to another (not included), and the file's size where it is known."""

MOST_BYTES = 20 * 10**6
"""Read of one model at most. A vocabulary of 150,000 tokens with its merges takes 6 MB."""
_FIRST_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16
"""Later parts of a split model have no vocabulary."""


def read_remote(fetch: Fetch, name: str) -> tuple[GgufHeader, ...]:
    """Read the header of the file `name`, or of all parts when it is the first of several.

    Raises `ModelFileError` for what is no sound GGUF or has a header of more than `MOST_BYTES`; what
    `fetch` raises passes through.
    """
    budget = _Budget(fetch)
    first = budget.header(name, _FIRST_BYTES)
    folder = PurePosixPath(name).parent
    return gather(first, lambda part: budget.header(str(folder / part), _SMALL_BYTES))


class _Budget:
    """Fetches, and counts what it fetched."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._left = MOST_BYTES

    def header(self, name: str, first_bytes: int) -> GgufHeader:
        data, size = self._more(name, b"", first_bytes, None)
        while True:
            try:
                return parse_header(data, Path(name), size)
            except Incomplete as more:
                # Twice as much each time: few requests, and at most half of the bytes for nothing.
                data, size = self._more(name, data, max(more.needed, 2 * len(data)), size)

    def _more(self, name: str, data: bytes, end: int, size: int | None) -> tuple[bytes, int]:
        end = min(end, len(data) + self._left, end if size is None else size)
        if end <= len(data):
            raise ModelFileError(
                f"The header of {name} is larger than {MOST_BYTES // 10**6} MB, so it is not read over the network. "
                "Download the file and plan that."
            )
        got, total = self._fetch(name, len(data), end)
        self._left -= len(got)
        whole = total if total is not None else size
        if not got:
            raise ModelFileError(f"The server sent nothing of {name} from byte {len(data)} on.")
        # Of a file whose size nobody tells, the header can be read, but not held against its end.
        return data + got, whole if whole is not None else 1 << 62


def read_candidate(hub: Hub, candidate: Candidate) -> tuple[GgufHeader, ...]:
    """Read the headers of a model on the hub. Raises `ModelFileError` or `HubError`."""

    def fetch(name: str, start: int, end: int) -> tuple[bytes, int | None]:
        return hub.read(candidate.repo, name, start=start, end=end, commit=candidate.commit)

    return read_remote(fetch, candidate.files[0].path)


def planned_chooser(hub: Hub, memory: Memory, wishes: Wishes) -> QuantChooser:
    """Choose the largest quantization for which a plan with `wishes` fits `memory`, header by header.

    Those whose weights alone are more than there is are left out unread.
    """
    room = (
        memory.gpu_limit + (memory.cpu_available or 0) if memory.has_gpu else memory.cpu_available
    )
    # On a card, everything is to lie on it: a smaller quantization beats layers in system memory.
    whole = replace(wishes, n_gpu_layers="all") if memory.has_gpu else wishes

    def choose_one(found: Sequence[Candidate]) -> Chosen:
        listed = eligible(found)
        for wanted in (whole, wishes) if memory.has_gpu else (wishes,):
            for candidate in listed:
                if room is not None and candidate.size > max(room, memory.gpu_limit):
                    continue
                best = choose(read_shape(read_candidate(hub, candidate)), wanted, memory).best
                if best is not None:
                    return Chosen(candidate, _why(candidate, best))
        smallest = listed[-1]
        reason = f"even the smallest, {smallest.quant} ({size_text(smallest.size)}), leaves no room"
        return Chosen(smallest, reason, fits=False)

    return choose_one


def _why(candidate: Candidate, best: Plan) -> str:
    where = "the GPU" if best.total_gpu else "memory"
    return (
        f"{candidate.quant} ({size_text(candidate.size)}) is the largest that fits {where}, with "
        f"{best.slots} × {best.n_ctx} tokens of {best.kv_type} KV"
    )
