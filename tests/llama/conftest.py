from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server.llama.arena import Arena
from server.llama.backend import LlamaBackend
from server.llama.loading import load_backend
from server.llama.params import LlamaParams
from tests.llama.driving import Driver
from tests.models import ModelFiles, ModelSpec

SCRIPT = (b"Hello", b" there", b"\xe4\xbd", b"\xa0", b"<think>", b" hm", b"</think>", b"!")
SCRIPTED = ModelSpec(script=SCRIPT)

MakeDriver = Callable[..., Driver]

layouts = pytest.mark.parametrize(
    "layout",
    [
        pytest.param({"layout": "unified"}, id="unified"),
        pytest.param({"layout": "split"}, id="split"),
        pytest.param({"layout": "split", "flash_attention": "off"}, id="split-off"),
    ],
)
"""What `auto` is on a card, on a CPU with a quantized cache, and on a CPU."""


def kind_of(layout: dict[str, Any], kv_type: str) -> dict[str, Any]:
    """Put the KV type beside the layout. Without flash attention V cannot be quantized: K alone is then."""
    off = layout.get("flash_attention") == "off"
    return layout | {"kv_type": kv_type, "kv_type_v": "f16" if off else None}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> ModelFiles:
    return ModelFiles(tmp_path_factory.mktemp("models"))


@pytest.fixture
def make_driver(models) -> Iterator[MakeDriver]:
    made: list[LlamaBackend] = []

    def make(spec: ModelSpec | None = None, arena: Arena | None = None, **params: Any) -> Driver:
        defaults: dict[str, Any] = {"slots": 4, "n_ctx": 256, "threads": 1, "warmup": False}
        wanted = LlamaParams(models.path(spec), **(defaults | params))
        backend = load_backend(wanted, arena)(lambda _fraction: None)
        assert isinstance(backend, LlamaBackend)
        made.append(backend)
        return Driver(backend)

    yield make
    for backend in made:
        backend.shutdown()
