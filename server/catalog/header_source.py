"""Headers of GGUF files that are not here: as many bytes from the front as it takes, by range requests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from server.catalog.download_choice import Chosen, QuantChooser, eligible, size_text
from server.catalog.gguf_cursor import Incomplete
from server.catalog.gguf_header import GgufHeader, parse_header
from server.catalog.gguf_split import gather
from server.catalog.hub import Hub
from server.catalog.hub_files import Candidate
from server.catalog.plan import Memory, ModelShape, Plan, Wishes, choose, read_shape
from server.catalog.plan.planning import DEFAULT_N_CTX, DEFAULT_SLOTS
from server.core.errors import ModelFileError

Fetch = Callable[[str, int, int], tuple[bytes, int | None]]
"""Bytes of a file from one place up to another (not included), and the file's size where it is known."""

_LOG = logging.getLogger(__name__)

MOST_BYTES = 20 * 10**6
"""Read of one model at most. A vocabulary of 150,000 tokens with its merges takes 6 MB."""
_INPUT_LAYER = 4 * 10**9
"""More than any token embedding takes, which stays in system memory."""
_FINE_BITS = 4
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


def read_first(fetch: Fetch, name: str) -> GgufHeader:
    """Do as `read_remote` does for one file, whatever it says of further parts."""
    return _Budget(fetch).header(name, _FIRST_BYTES)


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

    Where the wishes leave it open, the plain number of slots and tokens comes first, then as many as
    fit. On a card all of the model is to lie there; when nothing does, the smallest of 4 bits or
    more is taken, since each of its bytes in system memory costs time with every token.
    """
    return _PlannedChooser(hub, memory, wishes).choose


class _PlannedChooser:
    def __init__(self, hub: Hub, memory: Memory, wishes: Wishes) -> None:
        self._hub = hub
        self._memory = memory
        self._wishes = wishes
        self._shapes: dict[Candidate, ModelShape | None] = {}
        self._unsound: ModelFileError | None = None

    def choose(self, found: Sequence[Candidate]) -> Chosen:
        listed = eligible(found)
        whole = self._wishes
        if self._memory.has_gpu and whole.n_gpu_layers == "auto":
            whole = replace(whole, n_gpu_layers="all", n_cpu_moe=0)
        partly = sorted((c for c in listed if _fine(c)), key=lambda c: c.size) or listed[::-1]
        passes = [(_target(whole), listed), (whole, listed)]
        passes += [(self._wishes, partly)] if whole != self._wishes else []
        for wishes, order in passes:
            for candidate in order:
                best = self._best(candidate, wishes)
                if best is not None:
                    return Chosen(candidate, _why(candidate, best))
        sound = [c for c in listed if c not in self._shapes or self._shapes[c] is not None]
        if not sound and self._unsound is not None:
            raise self._unsound
        smallest = sound[-1]
        reason = f"even the smallest, {smallest.quant} ({size_text(smallest.size)}), leaves no room"
        return Chosen(smallest, reason, fits=False)

    def _best(self, candidate: Candidate, wishes: Wishes) -> Plan | None:
        """Plan a candidate; without reading it when its weights alone are more than there is."""
        memory = self._memory
        everywhere = (
            None if memory.cpu_available is None else memory.gpu_limit + memory.cpu_available
        )
        room = memory.gpu_limit + _INPUT_LAYER if wishes.n_gpu_layers == "all" else everywhere
        if room is not None and candidate.size > room:
            return None
        shape = self._shape(candidate)
        return None if shape is None else choose(shape, wishes, memory).best

    def _shape(self, candidate: Candidate) -> ModelShape | None:
        """Read a candidate once; None, and a warning, for one whose header is not sound."""
        if candidate not in self._shapes:
            try:
                shape = read_shape(read_candidate(self._hub, candidate))
            except ModelFileError as error:
                _LOG.warning("%s is left out of the choice: %s", candidate.quant, error)
                shape, self._unsound = None, self._unsound or error
            self._shapes[candidate] = shape
        return self._shapes[candidate]


def _target(wishes: Wishes) -> Wishes:
    """Fill in what is plainly wanted of slots and tokens."""
    slots = DEFAULT_SLOTS if wishes.slots == "auto" else wishes.slots
    return (
        replace(wishes, slots=slots, n_ctx=DEFAULT_N_CTX)
        if wishes.n_ctx == "auto"
        else replace(wishes, slots=slots)
    )


def _fine(candidate: Candidate) -> bool:
    """Whether the weights have 4 bits or more, by the quantization's name."""
    digits = [letter for letter in candidate.quant if letter.isdigit()]
    return not digits or int(digits[0]) >= _FINE_BITS


def _why(candidate: Candidate, best: Plan) -> str:
    sizes = f"{best.slots} × {best.n_ctx} tokens of {best.kv_type} KV"
    name = f"{candidate.quant} ({size_text(candidate.size)})"
    if best.limit_gpu and 0 < best.n_gpu_layers < best.n_layers:
        layers = f"{best.n_gpu_layers} of {best.n_layers} layers on the GPU"
        return f"{name} runs with {layers} and {sizes}; nothing fits the GPU as a whole"
    if best.limit_gpu and best.n_cpu_moe:
        return f"{name} runs with the experts of {best.n_cpu_moe} layers in memory and {sizes}"
    where = "the GPU" if best.total_gpu else "memory"
    return f"{name} is the largest that fits {where}, with {sizes}"
