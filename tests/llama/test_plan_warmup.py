"""The warm-up reaches the last cells, without computing what lies before them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.core.errors import ConfigError
from server.engine.plan import DecodeCode, Rows
from tests.llama.driving import prompt_of

pytestmark = pytest.mark.native


def counted(backend) -> list[int]:
    """Rows of every decode call from now on."""
    rows: list[int] = []
    decode = backend._library.decode

    def count(context, batch):
        rows.append(batch.n_tokens)
        return decode(context, batch)

    backend._library = replace(backend._library, decode=count)
    return rows


@pytest.mark.parametrize("slots", [1, 4])
def test_a_deep_warm_up_fills_the_unified_cells_by_copies(make_driver, slots):
    backend = make_driver(slots=slots, n_ctx=4096, kv_cells=4096, n_batch=64, n_ubatch=64).backend
    rows = counted(backend)
    depth = backend.warm_up(deep=True)
    assert 4096 - 2 * 64 - slots < depth <= 4096
    # One full ubatch to copy, one at full depth, one row per slot: not the thousands in between.
    assert rows == [64, 64, slots]


def test_a_deep_warm_up_really_uses_the_last_cells(make_driver):
    backend = make_driver(slots=2, n_ctx=1024, kv_cells=1024, n_batch=64, n_ubatch=64).backend
    clear = backend._library.memory_clear
    codes: list[int] = []

    def try_once_more(memory, data):
        backend._batch.fill([Rows(1, 1, [5] * 64, outputs=0)])
        codes.append(backend._library.decode(backend._context, backend._batch.native))
        clear(memory, data)

    backend._library = replace(backend._library, memory_clear=try_once_more)
    backend.warm_up(deep=True)
    assert codes == [DecodeCode.NO_CELLS]


def test_a_deep_warm_up_computes_its_way_down_in_the_split_layout(make_driver):
    backend = make_driver(slots=2, n_ctx=512, layout="split", n_batch=128, n_ubatch=128).backend
    rows = counted(backend)
    assert backend.warm_up(deep=True) == 384
    assert rows == [128, 128, 128, 2]


@pytest.mark.parametrize("layout", ["unified", "split"])
def test_a_deep_warm_up_leaves_no_trace(make_driver, layout):
    fresh = make_driver(slots=2, n_ctx=512, layout=layout)
    warmed = make_driver(slots=2, n_ctx=512, layout=layout)
    warmed.backend.warm_up(deep=True)
    for driver in (fresh, warmed):
        driver.start(1, prompt_of(1, 40))
        driver.run(8)
    assert warmed.running[1].said == fresh.running[1].said


def test_on_the_cpu_a_few_rows_are_enough(make_driver):
    backend = make_driver(slots=2, n_ctx=4096).backend
    rows = counted(backend)
    assert backend.warm_up(deep=False) == 8
    assert rows == [8]


def test_a_failure_at_depth_is_told(make_driver):
    backend = make_driver(slots=2, n_ctx=512, n_batch=64, n_ubatch=64).backend
    calls = iter([0, -3])
    backend._library = replace(backend._library, decode=lambda _context, _batch: next(calls))
    with pytest.raises(ConfigError, match="code -3"):
        backend.warm_up(deep=True)
