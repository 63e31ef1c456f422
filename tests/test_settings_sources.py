"""Where values come from: file, variables and flags, which wins, and what their mistakes say."""

from pathlib import Path

import pytest

from server.settings import Origin, Override, SettingsError, load
from server.settings.environment import computing_environment
from server.settings.report import effective_values


def problems(environ=None, flags=(), config=None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(config, environ=environ or {}, flags=flags)
    return [str(problem) for problem in caught.value.problems]


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("engine:\n  slots: 2\n  n_ctx: 512\nserver:\n  port: 1\n", encoding="utf-8")
    environ = {"ONEGPU_ENGINE__N_CTX": "1024", "ONEGPU_SERVER__PORT": "2", "PATH": "/bin"}
    flag = Override(("server", "port"), "--port", "3")

    loaded = load(config, environ=environ, flags=[flag])

    assert loaded.settings.engine.slots == 2
    assert loaded.settings.engine.n_ctx == 1024
    assert loaded.settings.server.port == 3
    assert loaded.settings.engine.n_batch == 2048
    assert loaded.origin(("engine", "slots")) == Origin("file", f"{config}:2")
    assert loaded.origin(("engine", "n_ctx")) == Origin("environment", "ONEGPU_ENGINE__N_CTX")
    assert loaded.origin(("server", "port")) == Origin("flag", "--port")
    assert loaded.origin(("engine", "n_batch")) == Origin("default")


@pytest.mark.parametrize(
    ("name", "text", "section", "key", "expected"),
    [
        ("ONEGPU_ENGINE__SLOTS", "8", "engine", "slots", 8),
        ("ONEGPU_ENGINE__KV_CELLS", "null", "engine", "kv_cells", None),
        ("ONEGPU_ENGINE__DETERMINISTIC", "true", "engine", "deterministic", True),
        ("ONEGPU_ENGINE__STALL_AFTER", "90", "engine", "stall_after", 90.0),
        ("ONEGPU_MODEL__N_GPU_LAYERS", "45", "model", "n_gpu_layers", 45),
        ("ONEGPU_MODEL__N_GPU_LAYERS", "all", "model", "n_gpu_layers", "all"),
        ("ONEGPU_MODEL__NAME", "123", "model", "name", "123"),
        ("ONEGPU_MODEL__PATH", "m/x.gguf", "model", "path", Path("m/x.gguf")),
        ("ONEGPU_GATEWAY__STREAM_HOLD", "250ms", "gateway", "stream_hold", 0.25),
        ("ONEGPU_SERVER__MAX_REQUEST_SIZE", "50MB", "server", "max_request_size", 50_000_000),
        ("ONEGPU_LOGGING__FORMAT", "json", "logging", "format", "json"),
    ],
)
def test_a_variable_is_read_as_what_its_setting_is(name, text, section, key, expected) -> None:
    settings = load(environ={name: text}).settings

    assert getattr(getattr(settings, section), key) == expected


def test_a_nested_section_has_one_more_part() -> None:
    environ = {"ONEGPU_MODEL__ROPE_SCALING__TYPE": "yarn", "ONEGPU_GATEWAY__TIMEOUT__READ": "1m"}

    settings = load(environ=environ).settings

    assert settings.model.rope_scaling.type == "yarn"
    assert settings.gateway.timeout.read == 60


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "ONEGPU_ENGINE__SLOTS",
            "many",
            'ONEGPU_ENGINE__SLOTS: engine.slots: must be auto or a whole number, 1 or more; it is "many"',
        ),
        (
            "ONEGPU_ENGINE__SLOTS",
            "300",
            'ONEGPU_ENGINE__SLOTS: engine.slots: must be at most 256; it is "300"',
        ),
        (
            "ONEGPU_ENGINE__SLOTS",
            "null",
            "ONEGPU_ENGINE__SLOTS: engine.slots: must be auto or a whole number, 1 or more; it is null",
        ),
        (
            "ONEGPU_MODEL__MMAP",
            "maybe",
            'ONEGPU_MODEL__MMAP: model.mmap: must be true or false, not "maybe"',
        ),
        (
            "ONEGPU_ENGINE_SLOTS",
            "8",
            "ONEGPU_ENGINE_SLOTS: unknown variable; did you mean ONEGPU_ENGINE__SLOTS?",
        ),
        ("ONEGPU_SLOTS", "8", "ONEGPU_SLOTS: unknown variable; did you mean ONEGPU_ENGINE__SLOTS?"),
        (
            "ONEGPU_engine__slots",
            "8",
            "ONEGPU_engine__slots: unknown variable; did you mean ONEGPU_ENGINE__SLOTS?",
        ),
        (
            "ONEGPU_ENGINE__KV_TIPE",
            "f16",
            "ONEGPU_ENGINE__KV_TIPE: unknown variable; did you mean ONEGPU_ENGINE__KV_TYPE?",
        ),
        (
            "ONEGPU_XYZZY",
            "1",
            "ONEGPU_XYZZY: unknown variable; ONEGPU_ENGINE__SLOTS is how engine.slots is written",
        ),
        (
            "ONEGPU_LOGGING",
            "x",
            "ONEGPU_LOGGING: names a section; set its keys one by one: ONEGPU_LOGGING__LEVEL, "
            "ONEGPU_LOGGING__FORMAT",
        ),
    ],
)
def test_a_wrong_variable_is_named(name, text, expected) -> None:
    assert problems({name: text}) == [expected]


def test_a_wrong_flag_is_named() -> None:
    flag = Override(("server", "port"), "--port", "http")

    assert problems(flags=[flag]) == ['--port: server.port: must be a whole number, not "http"']


def test_variables_of_a_kubernetes_service_are_not_ours() -> None:
    environ = {
        "ONEGPU_SERVICE_HOST": "10.0.0.1",
        "ONEGPU_SERVICE_PORT": "80",
        "ONEGPU_SERVICE_PORT_HTTP": "80",
        "ONEGPU_PORT": "tcp://10.0.0.1:80",
        "ONEGPU_PORT_80_TCP": "tcp://10.0.0.1:80",
        "ONEGPU_PORT_80_TCP_ADDR": "10.0.0.1",
    }

    assert load(environ=environ).origins == {}


def test_the_key_of_commands_is_no_setting() -> None:
    assert load(environ={"ONEGPU_KEY": "ogk_…"}).settings == load(environ={}).settings


def test_the_file_may_be_named_by_a_variable_and_the_flag_wins(tmp_path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("server: {port: 1}", encoding="utf-8")
    second.write_text("server: {port: 2}", encoding="utf-8")
    environ = {"ONEGPU_CONFIG": str(first)}

    assert load(environ=environ).settings.server.port == 1
    assert load(second, environ=environ).settings.server.port == 2


def test_mistakes_of_all_sources_come_together(tmp_path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("server: 5\nengine: {slots: x}\n", encoding="utf-8")
    flags = [Override(("server", "port"), "--port", "70000")]

    found = problems({"ONEGPU_ENGINE__N_CTX": "x"}, flags, config)

    assert [message.rsplit("/", 1)[-1].split(": ")[:2] for message in found] == [
        ["c.yaml:1", "server"],
        ["c.yaml:2", "engine.slots"],
        ["ONEGPU_ENGINE__N_CTX", "engine.n_ctx"],
        ["--port", "server.port"],
    ]


def test_the_process_environment_is_the_default_source(monkeypatch) -> None:
    monkeypatch.setenv("ONEGPU_SERVER__PORT", "4711")

    assert load().settings.server.port == 4711


def test_what_the_hub_says_counts_where_nothing_else_does(tmp_path) -> None:
    environ = {"HF_TOKEN": "secret", "HF_ENDPOINT": "http://mirror", "HF_HUB_OFFLINE": "1"}
    environ |= {"HF_HOME": "/var/hf", "OLLAMA_MODELS": "/var/ollama"}
    hub = load(environ=environ).settings.hub
    assert (hub.token, hub.endpoint, hub.offline) == ("secret", "http://mirror", True)
    assert (hub.cache, hub.ollama) == (Path("/var/hf/hub"), Path("/var/ollama"))
    config = tmp_path / "c.yaml"
    config.write_text("hub: {token: mine, cache: cached}\n", encoding="utf-8")
    loaded = load(config, environ=environ | {"ONEGPU_HUB__ENDPOINT": "http://other"})
    hub = loaded.settings.hub
    assert (hub.token, hub.endpoint, hub.cache) == ("mine", "http://other", Path("cached"))
    assert str(loaded.origin(("hub", "offline"))) == "HF_HUB_OFFLINE"
    rows = {row.name: row.value for row in effective_values(loaded)}
    assert rows["hub.token"] == "(set)"


def test_a_variable_reaches_into_a_further_model(tmp_path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("models: {small: {from: a.gguf}}\n", encoding="utf-8")
    loaded = load(config, environ={"ONEGPU_MODELS__SMALL__SLOTS": "2"})
    assert loaded.settings.models["small"].slots == 2
    assert problems({"ONEGPU_MODELS": "x"}) == [
        "ONEGPU_MODELS: maps names to sections; write it in the file"
    ]


@pytest.mark.parametrize(
    ("told", "given"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_who_computes_asks_for_huge_pages_unless_somebody_said_otherwise(told, given) -> None:
    environ = {"PATH": "/bin"} | ({} if told is None else {"GLIBC_TUNABLES": told})
    assert computing_environment(environ) == {"PATH": "/bin", "GLIBC_TUNABLES": given}
    assert computing_environment(computing_environment(environ)) == computing_environment(environ)
