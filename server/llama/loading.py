"""The loader that an engine is given."""

from __future__ import annotations

from collections.abc import Callable

from server.engine.interface import Backend, BackendLoader
from server.llama import saved
from server.llama.arena import Arena
from server.llama.backend import LlamaBackend
from server.llama.model import free_model, load_model
from server.llama.native import library
from server.llama.params import LlamaParams


def load_backend(params: LlamaParams, arena: Arena | None = None) -> BackendLoader:
    """Return a loader for the engine: it loads in the calling thread and raises `ModelFileError` or `ConfigError`."""

    def load(progress: Callable[[float], None]) -> Backend:
        loaded = load_model(library(), params, progress)
        try:
            backend = LlamaBackend(loaded, params, arena)
        except BaseException:
            free_model(loaded)
            raise
        try:
            # The bar stays full: most of the time is the main model's.
            backend.load_draft(params, lambda _fraction: progress(1.0))
            if params.warmup:
                backend.warm_up()
                if arena is not None and backend.info.saves_cells:
                    saved.touch(arena, loaded.allocated)
        except BaseException:
            backend.shutdown()
            raise
        return backend

    return load
