"""What does not go together is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.assembly.parts import build
from server.core.clock import SystemClock
from server.core.errors import ConfigError
from server.settings import Settings
from tests.models import ModelSpec, write_model

pytestmark = pytest.mark.anyio


async def test_what_is_loaded_at_start_fits_together(tmp_path: Path) -> None:
    first, second = (
        write_model(tmp_path / f"{name}.gguf", ModelSpec(seed=seed))
        for seed, name in enumerate("ab")
    )

    def settings(ram: int | None, *, preload: bool) -> Settings:
        return Settings.model_validate(
            {
                "model": {"path": first, "n_gpu_layers": 0},
                "engine": {"n_ctx": 256},
                "memory": {"ram": ram},
                "models": {"b": {"from": str(second), "preload": preload}},
            }
        )

    parts = build(settings(None, preload=True), SystemClock(), Path)
    parts.service.shutdown()
    assert [host.spec.name for host in parts.preload] == ["a", "b"]
    one_and_a_half = parts.preload[0].spec.footprint.cpu * 3 // 2
    with pytest.raises(ConfigError, match="loaded at start does not fit together: a, b need"):
        build(settings(one_and_a_half, preload=True), SystemClock(), Path)
    parts = build(settings(one_and_a_half, preload=False), SystemClock(), Path)
    parts.service.shutdown()
