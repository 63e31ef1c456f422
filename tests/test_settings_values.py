"""Durations, sizes, derived values, and which settings go together."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.settings import EngineSettings, SettingsError, load
from server.settings.machine import physical_cores
from server.settings.quantities import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30s", 30),
        ("500ms", 0.5),
        ("5m", 300),
        ("2h", 7200),
        ("1.5h", 5400),
        ("1d", 86400),
        (" 10 s ", 10),
        ("7", 7),
        (7, 7),
        (0.25, 0.25),
        (0, 0),
    ],
)
def test_durations(written, seconds) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written", ["", "s", "-5s", "5 min", "1m30s", "5M", "1:30", -1, True, None, [], float("nan")]
)
def test_not_durations(written) -> None:
    with pytest.raises(ValueError, match="must be a duration such as 500ms"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("10MB", 10_000_000),
        ("10MiB", 10_485_760),
        ("24GiB", 25_769_803_776),
        ("1.5kb", 1500),
        ("512", 512),
        ("512b", 512),
        (512, 512),
    ],
)
def test_sizes(written, size) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written", ["", "MB", "-1", "10 M", "1.0001kb", 0.5, True, None, "9" * 400]
)
def test_not_sizes(written) -> None:
    with pytest.raises(ValueError, match="must be a size such as 500KB"):
        parse_size(written)


@given(st.integers(min_value=0, max_value=10**15))
def test_a_size_is_shown_as_it_could_be_written(size) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(min_value=0, max_value=10**9))
def test_a_duration_is_shown_as_it_could_be_written(milliseconds) -> None:
    seconds = milliseconds / 1000

    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-5)


def test_values_that_follow_from_others() -> None:
    engine = EngineSettings(slots=3, n_ctx=1000, threads=5)

    assert engine.effective_kv_cells == 3000
    assert engine.effective_threads_batch == 5
    assert engine.effective_max_prefill_rows == 512
    assert EngineSettings().effective_threads == physical_cores()


def test_deterministic_forces_its_kv_type_and_graphs_of_one_row() -> None:
    engine = EngineSettings(deterministic=True, slots=256)

    assert engine.effective_kv_type == "q8_0"
    assert engine.effective_n_ubatch == 1
    assert engine.effective_max_prefill_rows == 512


def test_a_smaller_batch_takes_the_defaults_along() -> None:
    engine = EngineSettings(n_batch=64)

    assert engine.effective_n_ubatch == 64
    assert engine.effective_max_prefill_rows == 64
    assert engine.effective_max_prefill_rows_decoding == 64


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"kv_cells": "100"},
            "ONEGPU_ENGINE__KV_CELLS: engine.kv_cells: must be at least n_ctx (4096)",
        ),
        (
            {"kv_cells": "8192", "kv_layout": "split"},
            "ONEGPU_ENGINE__KV_CELLS: engine.kv_cells: must equal slots × n_ctx (4 × 4096 = 16384) "
            "with kv_layout split; it is 8192",
        ),
        (
            {"n_ubatch": "4096"},
            "ONEGPU_ENGINE__N_UBATCH: engine.n_ubatch: must be at most n_batch (2048); it is 4096",
        ),
        (
            {"n_ubatch": "11"},
            "ONEGPU_ENGINE__N_UBATCH: engine.n_ubatch: must be at least slots + 16 (20)",
        ),
        (
            {"slots": "200", "n_batch": "64"},
            "ONEGPU_ENGINE__SLOTS: engine.n_ubatch: must be at least slots + 16 (216)",
        ),
        (
            {"slots": "60", "n_batch": "64", "deterministic": "true"},
            "ONEGPU_ENGINE__N_BATCH: engine.n_batch: must be at least slots + 16 (76)",
        ),
        (
            {"max_prefill_rows": "4096"},
            "ONEGPU_ENGINE__MAX_PREFILL_ROWS: engine.max_prefill_rows: must be at most n_batch",
        ),
        (
            {"kv_type": "f16", "deterministic": "true"},
            "ONEGPU_ENGINE__KV_TYPE: engine.kv_type: must be q8_0, or be left out, when "
            "deterministic is true; it is f16",
        ),
        (
            {"n_ubatch": "512", "deterministic": "true"},
            "ONEGPU_ENGINE__N_UBATCH: engine.n_ubatch: must be 1, or be left out, when",
        ),
        (
            {"kv_layout": "unified", "deterministic": "true"},
            "ONEGPU_ENGINE__KV_LAYOUT: engine.kv_layout: must be split, or be left out, when",
        ),
        (
            {"kv_cells": "8192", "deterministic": "true"},
            "ONEGPU_ENGINE__KV_CELLS: engine.kv_cells: must equal slots × n_ctx (4 × 4096 = "
            "16384) with deterministic; it is 8192",
        ),
        (
            {"flash_attention": "off", "kv_type": "q4_0"},
            "ONEGPU_ENGINE__FLASH_ATTENTION: engine.flash_attention: must be auto or on with the "
            "quantized kv_type q4_0",
        ),
    ],
)
def test_settings_that_do_not_go_together(values, expected) -> None:
    environ = {f"ONEGPU_ENGINE__{key.upper()}": text for key, text in values.items()}

    with pytest.raises(SettingsError) as caught:
        load(environ=environ)

    assert [str(problem)[: len(expected)] for problem in caught.value.problems] == [expected]


@pytest.mark.parametrize(
    "values",
    [
        {"kv_cells": "16384", "kv_layout": "split"},
        {"kv_type": "q8_0", "n_ubatch": "1", "deterministic": "true"},
        {"n_ubatch": "20"},
        {"slots": "256"},
        {"slots": "auto", "n_ctx": "auto", "kv_cells": "auto", "kv_type": "auto"},
        {"n_ctx": "auto", "kv_cells": "5"},
    ],
)
def test_settings_that_just_go_together(values) -> None:
    environ = {f"ONEGPU_ENGINE__{key.upper()}": text for key, text in values.items()}

    assert len(load(environ=environ).origins) == len(values)


def test_hyper_threads_count_once_and_a_quota_caps(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text("0\n", encoding="ascii")
        (topology / "core_id").write_text(f"{cpu % 3}\n", encoding="ascii")
    assert physical_cores(tmp_path) == 3

    quota = tmp_path / "sys/fs/cgroup/cpu.max"
    quota.parent.mkdir(parents=True)
    quota.write_text("250000 100000\n", encoding="ascii")
    assert physical_cores(tmp_path) == 2

    quota.write_text("max 100000\n", encoding="ascii")
    assert physical_cores(tmp_path) == 3
    assert physical_cores(tmp_path / "nothing") == 4


def test_cells_follow_only_from_numbers() -> None:
    assert EngineSettings(slots="auto").effective_kv_cells == "auto"
    assert EngineSettings(slots="auto", kv_cells=9000).effective_kv_cells == 9000
    assert EngineSettings(deterministic=True, slots="auto").effective_kv_type == "q8_0"


def test_origins_are_lists_or_text_with_commas(tmp_path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("server:\n  cors_origins: [https://a.example, '*']\n", encoding="utf-8")

    assert load(config, environ={}).settings.server.cors_origins == ("https://a.example", "*")
    for text, origins in (
        ("http://a:1, http://b", ("http://a:1", "http://b")),
        ("null", ()),
        ("", ()),
    ):
        environ = {"ONEGPU_SERVER__CORS_ORIGINS": text}
        assert load(config, environ=environ).settings.server.cors_origins == origins


def test_the_data_directory_has_a_variable_and_a_home(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(environ={}).settings.data_dir == tmp_path / ".local/share/onegpu"
    environ = {"ONEGPU_DATA_DIR": "~/keys"}
    assert load(environ=environ).settings.data_dir == tmp_path / "keys"


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("speculation: off", "engine.speculation: off"),
        ("deterministic: true", "engine.deterministic: true"),
    ],
)
def test_a_draft_model_is_refused_where_nothing_is_drafted(tmp_path, engine, told) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"model: {{draft: small.gguf}}\nengine: {{{engine}}}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=told):
        load(config, environ={})
    config.write_text("model: {draft: small.gguf}", encoding="utf-8")
    assert load(config, environ={}).settings.model.draft == Path("small.gguf")


def test_drafts_need_graphs_of_several_rows():
    assert EngineSettings().effective_draft_rows == EngineSettings().max_draft == 32
    assert EngineSettings(speculation="off").effective_draft_rows == 0
    assert EngineSettings(deterministic=True).effective_draft_rows == 0
    assert EngineSettings(max_draft=100, n_ubatch=64).effective_draft_rows == 64
