"""What adapters take, and that it is given back."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from server.llama.adapter import (
    adapter_bytes,
    adapter_compute_bytes,
    detach_adapter,
    set_adapter,
)
from server.llama.loading import load_backend
from server.llama.params import LlamaParams
from tests.adapters import AdapterSpec, write_adapter
from tests.models import ModelSpec

pytestmark = pytest.mark.native

BASE = ModelSpec()


def test_loading_and_unloading_leaks_no_adapter(models, tmp_path):
    big = AdapterSpec(rank=512, alpha=512.0)
    path = write_adapter(tmp_path / "big.gguf", big, BASE)
    params = LlamaParams(models.path(), n_ctx=64, threads=1, adapter=path, warmup=False)
    assert adapter_bytes(path) > 4 * 2**20

    def cycle() -> int:
        load_backend(params)(lambda _fraction: None).shutdown()
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    before = [cycle() for _ in range(4)][-1]
    after = [cycle() for _ in range(12)][-1]
    # Twelve would be left over.
    assert after - before < 5 * adapter_bytes(path)


def test_a_context_that_lives_on_gets_the_memory_of_its_adapters_back(make_driver, tmp_path):
    path = write_adapter(tmp_path / "big.gguf", AdapterSpec(rank=512, alpha=512.0), BASE)
    loaded = make_driver().backend._loaded

    def cycle() -> int:
        adapter = loaded.library.adapter_lora_init(loaded.model, str(path).encode())
        assert adapter
        set_adapter(loaded.library, loaded.context, adapter, 1.0)
        detach_adapter(loaded.library, loaded.context, adapter)
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    before = [cycle() for _ in range(4)][-1]
    after = [cycle() for _ in range(12)][-1]
    # Twelve would be left over.
    assert after - before < 5 * adapter_bytes(path)


ALL = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down", "token_embd", "output")


@pytest.mark.parametrize(
    ("base", "grows"),
    [
        (ModelSpec(embedding=128, heads=8, head_size=32, feed_forward=256), True),
        (ModelSpec(embedding=256, heads=4, head_size=128, feed_forward=2048), False),
    ],
)
def test_compute_buffers_grow_by_no_more_than_is_said(models, tmp_path, caplog, base, grows):
    path = write_adapter(tmp_path / "adapter.gguf", AdapterSpec(targets=ALL, rank=256), base)
    params = LlamaParams(models.path(base), adapter=path, n_ctx=1024, slots=1)
    with caplog.at_level(logging.DEBUG, "onegpu.llama_cpp"):
        load_backend(params)(lambda _fraction: None).shutdown()
    sizes = re.findall(r"sched_reserve: .*compute buffer size = +([\d.]+) MiB", caplog.text)
    before, after = (float(size) * 2**20 for size in sizes)
    said = adapter_compute_bytes(path, params.n_ubatch)
    assert said == 512 * base.feed_forward * 4
    assert before <= after <= before + said
    assert (after > before) == grows
