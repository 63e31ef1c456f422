"""Where llama.cpp's attention on a CPU works in tiles: what the planner of steps is told, and that it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.llama.model import read_info
from server.llama.params import LlamaParams


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, 64),
        ({"kv_type": "f32"}, 64),
        ({"kv_type": "q8_0"}, 1),
        ({"kv_type": "bf16"}, 1),
        ({"kv_type_v": "f32"}, 1),
        ({"flash_attention": "off"}, 1),
        ({"layout": "split"}, 1),
        ({"n_gpu_layers": 0}, 64),
        ({"n_gpu_layers": "all"}, 1),
        ({"n_gpu_layers": 1}, 64),
    ],
)
def test_tiles_are_told_where_ggml_uses_them(make_driver, models, fields, rows):
    loaded = make_driver().backend._loaded
    params = replace(LlamaParams(models.path(None), n_ctx=256, warmup=False), **fields)
    calls = read_info(loaded, params, 250).calls
    assert calls.tile_rows == rows
    assert calls.chunk_rows == (1 if fields.get("n_gpu_layers") == "all" else 64)
    assert calls.one_pass == (fields.get("layout") != "split")
