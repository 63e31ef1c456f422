"""The process that measures: what it answers, and what becomes of one that dies or hangs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from server.assembly.tuning.child import Child
from server.engine.limits import SchedulerLimits
from server.engine.trial import TrialFailed, Workload
from server.llama.params import DraftParams, LlamaParams
from tests.models import ModelSpec, write_model

LIMITS = SchedulerLimits(slots=2, n_ctx=256, kv_cells=512, prefill_rows_decoding=16)
WORK = Workload(streams=2, depth=32, steps=2, limits=LIMITS)
PARAMS = LlamaParams(Path("m.gguf"))


def script(text: str) -> Child:
    return Child((sys.executable, "-c", text))


@pytest.mark.native
def test_configurations_are_measured_one_after_the_other(tmp_path) -> None:
    path = write_model(tmp_path / "m.gguf", ModelSpec())
    with Child() as child:
        first = child.run(LlamaParams(path, slots=2, n_ctx=256), WORK, 60)
        other = child.run(LlamaParams(path, slots=2, n_ctx=256, layout="split"), WORK, 60)
        plain = child.run(LlamaParams(path, slots=2, n_ctx=256, extra_buffers=False), WORK, 60)
        with pytest.raises(TrialFailed, match="cannot load"):
            child.run(LlamaParams(tmp_path / "none.gguf", slots=2, n_ctx=256), WORK, 60)
        again = child.run(LlamaParams(path, slots=2, n_ctx=256), WORK, 60)
        drafts = DraftParams(path)
        child.run(LlamaParams(path, slots=2, n_ctx=256, draft_rows=8, draft=drafts), WORK, 60)
        document = replace(WORK, depth=16, steps=0, document=64)
        prompts = child.run(LlamaParams(path, slots=2, n_ctx=256), document, 60)
    assert min(first.prefill, first.single or 0, first.all or 0, first.beside or 0) > 0
    assert min(other.all or 0, plain.all or 0, again.all or 0) > 0
    assert min(prompts.prefill, prompts.beside or 0, prompts.slowest or 0) > 0
    assert prompts.all is None


def test_what_aborts_has_lost_and_the_next_one_gets_a_process_of_its_own(tmp_path) -> None:
    here = tmp_path / "been"
    text = (
        "import os, sys, json, pathlib\n"
        f"been = pathlib.Path({str(here)!r})\n"
        "sys.stdin.readline()\n"
        "if not been.exists():\n"
        "    been.touch(); print('llama.cpp aborted: no room', file=sys.stderr, flush=True); os.abort()\n"
        "print(json.dumps({'rates': {'prefill': 1, 'beside': 2, 'single': 3, 'all': 4}}), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with script(text) as child:
        with pytest.raises(TrialFailed, match=r"status -6: llama\.cpp aborted: no room"):
            child.run(PARAMS, WORK, 30)
        assert child.run(PARAMS, WORK, 30).all == 4


def test_what_hangs_is_ended(tmp_path) -> None:
    with script("import sys, time; sys.stdin.readline(); time.sleep(600)") as child:
        with pytest.raises(TrialFailed, match="took more than"):
            child.run(PARAMS, WORK, 0.2)
        assert child._process is None


def test_nobody_is_left_behind() -> None:
    with script('import sys; [print(\'{"error": "no"}\', flush=True) for _ in sys.stdin]') as child:
        with pytest.raises(TrialFailed, match="no"):
            child.run(PARAMS, replace(WORK, steps=3), 30)
        process = child._process
        assert process is not None
    assert process.poll() is not None
