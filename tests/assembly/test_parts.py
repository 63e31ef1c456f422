"""What does not go together is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.assembly import parts as assembly
from server.assembly.engine import build_engine
from server.assembly.parts import build
from server.core.clock import SystemClock
from server.core.errors import ConfigError
from server.llama.arena import Arena
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


async def test_engines_share_one_arena_as_large_as_the_host_cache(tmp_path: Path, monkeypatch):
    first, second = (write_model(tmp_path / f"{n}.gguf", ModelSpec(seed=n)) for n in range(2))
    handed = []

    def spy(*arguments):
        handed.append(arguments)
        return build_engine(*arguments)

    monkeypatch.setattr(assembly, "build_engine", spy)
    for size, arenas in (("64MiB", 1), (0, 0)):
        handed.clear()
        settings = Settings.model_validate(
            {
                "model": {"path": first, "n_gpu_layers": 0},
                "engine": {"n_ctx": 256, "host_cache": size},
                "models": {"b": {"from": str(second), "preload": True}},
            }
        )
        parts = build(settings, SystemClock(), Path)
        for host in parts.preload:
            host.spec.make()
        parts.service.shutdown()
        found = {one for arguments in handed for one in arguments if isinstance(one, Arena)}
        assert len(handed) == 2
        assert [arena.limit for arena in found] == [64 * 2**20] * arenas
