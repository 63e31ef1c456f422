"""Measuring configurations in a child process: one that aborts llama.cpp must not end who asks.

`python -m server.llama.trial` answers each JSON line `{"params": …, "work": …}` with one:
`{"rates": …}` or `{"error": "…"}`. Weights stay loaded while only the context changes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from server.core.clock import Clock, SystemClock
from server.core.errors import OnegpuError
from server.engine.trial import TrialFailed, Workload, measure
from server.llama.backend import LlamaBackend
from server.llama.model import context_on, free_model, load_weights
from server.llama.native import Address, library
from server.llama.params import LlamaParams

_OF_WEIGHTS = ("path", "n_gpu_layers", "n_cpu_moe", "main_gpu", "mmap", "mlock", "extra_buffers")


def as_document(params: LlamaParams) -> dict[str, Any]:
    """Return what JSON can carry: all but the draft model, which no trial measures."""
    paths = {"path": str(params.path), "adapter": params.adapter and str(params.adapter)}
    return asdict(replace(params, draft=None)) | paths


def from_document(document: Mapping[str, Any]) -> LlamaParams:
    """Undo `as_document`."""
    adapter = document["adapter"]
    paths = {"path": Path(document["path"]), "adapter": adapter and Path(adapter)}
    return LlamaParams(**{**document, **paths})


class Bench:
    """One context at a time, over weights that stay for the next one if they are the same."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._weights: tuple[list[Any], Address] | None = None

    def run(self, params: LlamaParams, work: Workload) -> dict[str, Any]:
        """Make the context, measure, free it. Raises `OnegpuError` and `TrialFailed`."""
        loaded = context_on(library(), self._loaded(params), params)
        try:
            backend = LlamaBackend(loaded, params)
        except BaseException:
            free_model(loaded)
            raise
        try:
            backend.warm_up()
            return {"rates": asdict(measure(backend, work, self._clock))}
        finally:
            backend.shutdown()

    def _loaded(self, params: LlamaParams) -> Address:
        key = [getattr(params, name) for name in _OF_WEIGHTS]
        if self._weights is not None and self._weights[0] == key:
            return self._weights[1]
        if self._weights is not None:
            library().model_free(self._weights[1])
            self._weights = None
        model = load_weights(library(), params, lambda _fraction: None)
        self._weights = (key, model)
        return model


def answer(bench: Bench, line: str) -> dict[str, Any]:
    """Measure what one line asks for."""
    asked = json.loads(line)
    try:
        return bench.run(from_document(asked["params"]), Workload.of(asked["work"]))
    except OnegpuError as error:
        return {"error": error.message}
    except (TrialFailed, RuntimeError, ValueError, MemoryError) as error:
        return {"error": str(error) or type(error).__name__}


def main() -> None:
    """Answer until input ends."""
    bench = Bench(SystemClock())
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(bench, line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
