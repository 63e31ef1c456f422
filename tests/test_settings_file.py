"""Mistakes in the YAML file: a message names the place, the key, the fault and what is allowed."""

from pathlib import Path

import pytest

from server.core.errors import ConfigError
from server.settings import SettingsError, load

AUTO = "must be auto or a whole number, 1 or more"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write `c.yaml` into the working directory, so that messages start with `c.yaml`."""
    monkeypatch.chdir(tmp_path)

    def _write(content: str | bytes) -> Path:
        raw = content.encode() if isinstance(content, str) else content
        Path("c.yaml").write_bytes(raw)
        return Path("c.yaml")

    return _write


def messages(config: Path | None, **options) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(config, environ={}, **options)
    assert isinstance(caught.value, ConfigError)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "engine:\n  slotz: 8\n",
            "c.yaml:2: engine.slotz: unknown key; did you mean engine.slots?",
        ),
        (
            "\nengin:\n  slots: 8\n",
            "c.yaml:2: engin: unknown key; did you mean engine?",
        ),
        (
            "slots: 8\n",
            "c.yaml:1: slots: unknown key; did you mean engine.slots (the key slots within "
            "engine)?",
        ),
        (
            "engine.slots: 8\n",
            "c.yaml:1: engine.slots: unknown key; did you mean engine.slots (the key slots within "
            "engine)?",
        ),
        (
            "gateway:\n  timeout:\n    conect: 3\n",
            "c.yaml:3: gateway.timeout.conect: unknown key; did you mean gateway.timeout.connect?",
        ),
        (
            "zebra: 1\n",
            "c.yaml:1: zebra: unknown key; allowed here: model, models, aliases, remotes, models_dir, "
            "data_dir, modelfiles, memory, hub, engine, gateway, server, logging",
        ),
        (
            'engine:\n  n_batch: "8"\n',
            'c.yaml:2: engine.n_batch: must be a whole number, not "8"',
        ),
        ("engine:\n  slots: 8.5\n", f"c.yaml:2: engine.slots: {AUTO}; it is 8.5"),
        ("engine:\n  slots: true\n", f"c.yaml:2: engine.slots: {AUTO}; it is true"),
        ("engine:\n  slots: [8]\n", f"c.yaml:2: engine.slots: {AUTO}; it is a list"),
        ("engine:\n  slots:\n", f"c.yaml:2: engine.slots: {AUTO}; it is null"),
        ("engine:\n  slots: 0\n", f"c.yaml:2: engine.slots: {AUTO}; it is 0"),
        ("engine:\n  slots: 257\n", "c.yaml:2: engine.slots: must be at most 256; it is 257"),
        ("model:\n  mmap: yes\n", 'c.yaml:2: model.mmap: must be true or false, not "yes"'),
        ("model:\n  mmap: 1\n", "c.yaml:2: model.mmap: must be true or false, not 1"),
        ("model:\n  name: 7\n", "c.yaml:2: model.name: must be text, not 7; put it in quotes"),
        (
            "model:\n  name: ''\n",
            'c.yaml:2: model.name: must not be empty; it is ""',
        ),
        ("model: demo.gguf\n", "c.yaml:1: model: must be a section with keys of its own, not"),
        (
            "model:\n  n_gpu_layers: most\n",
            "c.yaml:2: model.n_gpu_layers: must be auto, all or a number of layers, 0 or more; it "
            'is "most"',
        ),
        ("model:\n  n_gpu_layers: -1\n", "c.yaml:2: model.n_gpu_layers: must be auto, all or a"),
        (
            "model:\n  rope_scaling:\n    freq_scale: 0\n",
            "c.yaml:3: model.rope_scaling.freq_scale: must be more than 0; it is 0",
        ),
        (
            "engine:\n  kv_type: q8\n",
            "c.yaml:2: engine.kv_type: must be one of auto, f16, q8_0, q5_1, q5_0, q4_1, q4_0, f32, "
            'bf16, not "q8"; did you mean q8_0?',
        ),
        (
            "models:\n  small:\n    form: a.gguf\n    from: b.gguf\n",
            "c.yaml:3: models.small.form: unknown key; did you mean models.small.from?",
        ),
        ("models:\n  small:\n    slots: 2\n", "c.yaml:2: models.small.from: Field required"),
        (
            "models:\n  small:\n    from: a\n    slots: x\n",
            f'c.yaml:4: models.small.slots: {AUTO}; it is "x"',
        ),
        ("models:\n  small: a.gguf\n", "c.yaml:2: models.small: must be a section with keys"),
        ("models: [a]\n", "c.yaml:1: models: must be names with a section each, not a list"),
        (
            "gateway:\n  stream_hold: 5 minutes\n",
            "c.yaml:2: gateway.stream_hold: must be a duration such as 500ms, 30s, 5m or 2h (a "
            'plain number is seconds); it is "5 minutes"',
        ),
        (
            "gateway:\n  timeout: {read: 0}\n",
            "c.yaml:2: gateway.timeout.read: must be more than 0; it is 0",
        ),
        (
            "server:\n  cors_origins: [https://a.example/path]\n",
            "c.yaml:2: server.cors_origins: must be a list of origins such as https://chat.",
        ),
        (
            "server:\n  cors_origins: 7\n",
            "c.yaml:2: server.cors_origins: must be a list of origins",
        ),
        (
            "server:\n  max_request_size: 10 potatoes\n",
            "c.yaml:2: server.max_request_size: must be a size such as 500KB, 10MB or 24GiB",
        ),
        ("server:\n  port: 65536\n", "c.yaml:2: server.port: must be at most 65535; it is 65536"),
        (
            "server: {port: 1}\nserver: {port: 2}\n",
            "c.yaml:2: server: given twice; first on line 1",
        ),
        ("server:\n\tport: 1\n", "c.yaml:2: a tab indents this line; YAML wants spaces"),
        ("server: {port: 1\n", "c.yaml:2: not valid YAML: while parsing a flow mapping"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2: not valid YAML: expected a single document"),
        ("- a\n- b\n", "c.yaml:1: must be sections of `key: value` lines, such as `engine:`"),
        ("8000\n", "c.yaml:1: must be sections of `key: value` lines, such as `engine:`"),
        ("? [a]\n: 1\n", "c.yaml:1: a key must be a plain word"),
        ("server: &s {port: 1}\nmodel: *s\n", "c.yaml:2: not valid YAML: aliases (*name) are not"),
        ("server: !!python/name:os.system x\n", "c.yaml:1: not valid YAML: tags (tag:yaml.org"),
        ("server: {host: \x07}\n", "c.yaml:1: not valid YAML: a control character"),
        (b"server:\n  host: \xff\n", "c.yaml:2: byte 0xff is not UTF-8; save it as UTF-8"),
    ],
)
def test_one_mistake_is_one_message(write, content, expected) -> None:
    found = messages(write(content))

    assert len(found) == 1
    assert found[0].startswith(expected)


def test_all_mistakes_are_told_at_once_from_top_to_bottom(write) -> None:
    config = write("server:\n  port: x\nengine:\n  slots: 0\n  n_ctxx: 1\nengine: {}\nfoo: 1\n")

    assert [message.split(": ")[0] for message in messages(config)] == [
        "c.yaml:2",
        "c.yaml:4",
        "c.yaml:5",
        "c.yaml:6",
        "c.yaml:7",
    ]


def test_the_whole_text_is_a_headline_and_a_line_per_mistake(write) -> None:
    with pytest.raises(SettingsError) as caught:
        load(write("server:\n  port: -1\n  hosts: x\n"), environ={})

    assert caught.value.message.splitlines() == [
        "2 configuration errors:",
        "  c.yaml:2: server.port: must be at least 0; it is -1",
        "  c.yaml:3: server.hosts: unknown key; did you mean server.host?",
    ]


def test_a_missing_file_names_the_example(tmp_path) -> None:
    path = tmp_path / "none.yaml"

    assert messages(path) == [f"{path}: there is no such file; onegpu.example.yaml is one to copy"]


def test_a_directory_is_not_a_file(tmp_path) -> None:
    assert messages(tmp_path) == [f"{tmp_path}: this is a directory, not a YAML file"]


@pytest.mark.parametrize("content", ["", "# only a comment\n", "---\n", "null\n", "engine:\n"])
def test_a_file_or_section_with_nothing_in_it_is_all_defaults(write, content) -> None:
    assert load(write(content), environ={}).settings == load(environ={}).settings


def test_words_of_yaml_1_1_are_text(write) -> None:
    settings = load(
        write("engine: {flash_attention: on}\nmodel: {name: no}\n"), environ={}
    ).settings

    assert settings.engine.flash_attention == "on"
    assert settings.model.name == "no"


def test_a_byte_order_mark_and_windows_line_ends_are_fine(write) -> None:
    config = write(b"\xef\xbb\xbfserver:\r\n  port: 81\r\n")

    assert load(config, environ={}).settings.server.port == 81


def test_numbers_may_be_grouped_and_absurd_ones_are_errors_not_crashes(write) -> None:
    assert load(write("engine: {kv_cells: 131_072}"), environ={}).settings.engine.kv_cells == 131072
    nines = "9" * 5000
    assert messages(write(f"engine: {{kv_cells: {nines}}}"))
    assert messages(write(f"server: {{max_request_size: {nines}}}"))
    assert messages(write("gateway: {stream_hold: .inf}"))


def test_settings_cannot_be_changed() -> None:
    settings = load(environ={}).settings

    with pytest.raises(ValueError, match="frozen"):
        settings.engine.slots = 5  # type: ignore[misc]


def test_further_models_are_read_by_name(write) -> None:
    config = write(
        "models:\n  volume:\n    from: qwen2:7b\n    keep_alive: 10m\n    n_ctx: auto\nhub:\n"
    )
    entry = load(config, environ={}).settings.models["volume"]
    assert (entry.from_, entry.keep_alive, entry.n_ctx) == ("qwen2:7b", 600.0, "auto")
    assert (entry.preload, entry.slots) == (False, None)
    assert load(write("models:\n"), environ={}).settings.models == {}
