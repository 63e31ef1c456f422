"""What the shipped Modelfiles say about a 24 GB card is what the planner says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from server.catalog.gguf import read_header
from server.catalog.modelfile import find_modelfiles, read_modelfile, resolve, served_name
from server.catalog.plan import Memory, Wishes, plan, read_shape
from tests.catalog.plan_headers import QWEN3_32B, write_header

SHIPPED = Path(__file__).parents[2] / "modelfiles"
CARD = 24_564 * 2**20
"""What a 24 GB card reports."""
CARDS = {"qwen3-32b-24g": 4, "long-document": 2}
"""File → slots that it promises."""


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    return read_shape(
        read_header(write_header(tmp_path_factory.mktemp("plan") / "m.gguf", QWEN3_32B))
    )


def load(base: str):
    return read_modelfile(Path(base)) if served_name(Path(base)) else None


@pytest.mark.parametrize("name", CARDS)
def test_the_command_in_the_file_fits_the_card(shape, name):
    path = find_modelfiles(SHIPPED)[name]
    agent = resolve(read_modelfile(path), load)
    found = re.search(r"^# +onegpu serve (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    file, *flags = shlex.split(found[1])
    assert file == f"modelfiles/{path.name}"
    assert flags == ["--slots", str(CARDS[name]), "--kv-type", "q8_0"]
    memory = Memory(gpu_total=CARD, gpu_free=CARD, cpu_available=32 * 2**30)

    def fits(slots: int, kv_type: str) -> bool:
        wishes = Wishes(slots=slots, n_ctx=agent.n_ctx, kv_type=kv_type, n_gpu_layers="all")
        return plan(shape, wishes, memory).fits

    assert fits(CARDS[name], "q8_0")
    assert not fits(CARDS[name] + 1, "q8_0"), "more than is promised would fit"
    assert fits(CARDS[name] // 2, "f16")
