"""What a Modelfile means: instructions, parameters, tools, adapters, inheritance."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.catalog.modelfile import (
    FOREVER,
    Modelfile,
    find_modelfiles,
    parse_modelfile,
    read_modelfile,
    resolve,
    served_name,
)
from server.catalog.modelfile.parameters import INSTEAD, SAMPLING
from server.core.errors import ConfigError
from server.core.request import SamplingParams
from tests.catalog.conftest import STRING, entry, gguf, text

SHIPPED = Path(__file__).parents[2] / "modelfiles"


def parse(source: str, folder: Path | None = None) -> Modelfile:
    return parse_modelfile(source, origin="Modelfile", folder=folder)


def test_everything_at_once():
    found = parse(
        """\
# A comment, then a blank line

from qwen3:32b
\tPARAMETER num_ctx 8192
parameter NUM_PREDICT 2048
Parameter temperature 0.7
PARAMETER top_k -1
PARAMETER seed 42
PARAMETER stop "<|im_end|>"
PARAMETER stop User:
PARAMETER timeout 2m
PARAMETER keep_alive -1
PARAMETER overflow drop_oldest
SYSTEM \"\"\"You are "kind".
# not a comment
\"\"\"
MESSAGE user Is Toronto in Canada?
MESSAGE assistant "yes"
LICENSE MIT
LICENSE \"\"\"
more\"\"\"
"""
    )

    assert found == Modelfile(
        name=None,
        origin="Modelfile",
        base="qwen3:32b",
        system='You are "kind".\n# not a comment\n',
        messages=(
            {"role": "user", "content": "Is Toronto in Canada?"},
            {"role": "assistant", "content": "yes"},
        ),
        license=("MIT", "\nmore"),
        n_ctx=8192,
        max_tokens=2048,
        timeout=120.0,
        stop=("<|im_end|>", "User:"),
        sampling={"temperature": 0.7, "top_k": 0, "seed": 42},
        overflow="drop_oldest",
        keep_alive=FOREVER,
        given=found.given,
    )
    assert found.given == {
        *("base", "system", "messages", "license", "n_ctx", "max_tokens", "timeout", "stop"),
        *("sampling", "overflow", "keep_alive"),
    }


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("plain  words ", "plain  words"),
        ('"in quotes "', "in quotes "),
        ('"He said "hi" to me"', 'He said "hi" to me'),
        ('""', ""),
        ('"""one"""', "one"),
        ('"""one\ntwo"""  ', "one\ntwo"),
        ('"""Write """ around it\nalways"""', 'Write """ around it\nalways'),
        ('"one\ntwo"', "one\ntwo"),
        ("# this is text", "# this is text"),
        ("tab\tand ümläut 漢字 \u00a0", "tab\tand ümläut 漢字"),
        ('"""a\r\nb"""', "a\nb"),
    ],
)
def test_values_are_read_as_ollama_reads_them(written, read):
    assert parse(f"FROM m\nSYSTEM {written}\nPARAMETER seed 1").system == read
    assert parse(f"SYSTEM {written}\nFROM m").system == read


@pytest.mark.parametrize(
    ("data", "system"),
    [
        (b"\xef\xbb\xbfFROM m\nSYSTEM hi", "hi"),
        ("\ufeffFROM m\r\nSYSTEM ä".encode("utf-16-le"), "ä"),
        ("\ufeffFROM m\nSYSTEM ä".encode("utf-16-be"), "ä"),
    ],
)
def test_files_as_editors_save_them(tmp_path, data, system):
    path = tmp_path / "a.Modelfile"
    path.write_bytes(data)

    assert read_modelfile(path).system == system


def test_every_sampling_parameter_is_a_field_of_the_engine():
    known = {each.name for each in fields(SamplingParams)}

    assert set(SAMPLING) <= known
    assert known - set(SAMPLING) == {"logit_bias", "dry_sequence_breakers"}


@pytest.mark.parametrize("name", sorted(SAMPLING))
def test_sampling_parameters_reach_the_engine(name):
    number = SAMPLING[name]
    value = min(1, number.high)

    found = parse(f"FROM m\nPARAMETER {name} {value}")

    assert SamplingParams(**found.sampling) == SamplingParams(**{name: value})
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("num_gpu 45", "n_gpu_layers", 45),
        ("num_gpu 0", "n_gpu_layers", 0),
        ("num_gpu -1", "n_gpu_layers", None),
        ("num_gpu auto", "n_gpu_layers", None),
        ("num_gpu all", "n_gpu_layers", "all"),
        ("timeout 90", "timeout", 90.0),
        ("timeout 500ms", "timeout", 0.5),
        ("keep_alive 5m", "keep_alive", 300.0),
        ("keep_alive 0", "keep_alive", 0.0),
        ("keep_alive -1m", "keep_alive", math.inf),
        ("adapter_scale 0.5", "adapter_scale", 0.5),
        ("overflow refuse", "overflow", "refuse"),
        ("pin true", "pin", True),
        ("pin False", "pin", False),
    ],
)
def test_parameters_of_the_model(line, field, value):
    found = parse(f"FROM m\nPARAMETER {line}")

    assert getattr(found, field) == value
    assert field in found.given


def test_seeds_are_the_apis():
    assert parse("FROM m\nPARAMETER seed -1").sampling == {"seed": None}
    assert parse("FROM m\nPARAMETER seed -2").sampling == {"seed": 2**32 - 2}
    assert parse("FROM m\nPARAMETER seed 0").sampling == {"seed": 0}


@pytest.mark.parametrize("name", sorted(INSTEAD))
def test_parameters_without_effect_say_what_is_used_instead(name):
    [warning] = parse(f"FROM m\n PARAMETER {name} 1").warnings

    assert warning == f"Modelfile:2:2: PARAMETER {name} has no effect: {INSTEAD[name]}."


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("PARAMETER num_gpu 1", "counts layers, not cards: 1 puts one layer on the GPU"),
        ("PARAMETER num_predict -1", "engine.default_max_tokens"),
        ("PARAMETER num_predict -2", "engine.default_max_tokens"),
        ('PARAMETER stop "\\n"', "knows no escapes"),
        ("PARAMETER stop '<|im_end|>'", "quotation marks included"),
        ('PARAMETER stop ["a", "b"]', "one PARAMETER stop for each text"),
        ("PARAMETER seed 1\nPARAMETER seed 2", "replaces the one at Modelfile:2:1"),
        ("SYSTEM a\nSYSTEM b", "replaces the one at Modelfile:2:1"),
        ("REQUIRES 0.14.0", "a version of Ollama"),
        ("RENDERER qwen3-coder", "part of Ollama's program"),
        ("PARSER qwen3-coder", "part of Ollama's program"),
        ("ADAPTER https://hub.test/Qwen3-32B-Q4_K_M.gguf", "write FROM with it instead"),
        ("ADAPTER ./weights.IQ4_XS.gguf", "write FROM with it instead"),
    ],
)
def test_traps_are_named(line, says):
    [warning] = parse(f"FROM m\n{line}").warnings

    assert says in warning


@pytest.mark.parametrize(
    "name",
    ["https://hub.test/style-lora-Q8_0.gguf", "./adapter.q4_k_m.gguf", "hf:me/lora/f16.gguf"],
)
def test_names_that_may_well_be_adapters_are_not_suspected(name):
    assert parse(f"FROM m\nADAPTER {name}").warnings == ()


def test_relative_paths_start_at_the_file(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "weights").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "files"

    assert parse("FROM ./m.gguf", folder).base == str(folder / "m.gguf")
    assert parse("FROM ../m.gguf", Path("files")).base == str(tmp_path / "m.gguf")
    assert parse("FROM weights", folder).base == str(folder / "weights")
    assert parse("FROM /srv/m.gguf", folder).base == "/srv/m.gguf"
    assert parse("FROM ~/m.gguf", folder).base == str(Path.home() / "m.gguf")
    assert parse("FROM qwen3:32b", folder).base == "qwen3:32b"
    assert parse("FROM hf:o/r/m.gguf", folder).base == "hf:o/r/m.gguf"
    assert parse("FROM m\nADAPTER lora", folder).adapter == str(folder / "lora")
    address = "https://hub.test/lora.gguf?download=true"
    assert parse(f"FROM m\nADAPTER {address}", folder).adapter == address


def test_a_draft_model_is_named_as_weights_are(tmp_path):
    path = tmp_path / "x.Modelfile"
    path.write_text("FROM m\n  DRAFT ./small.gguf\n", encoding="utf-8")
    found = read_modelfile(path)
    assert found.draft == str(tmp_path / "small.gguf")
    assert found.draft_place == f"{path}:2:9"
    assert {"draft", "draft_place"} <= found.given
    assert found.warnings == ()
    assert parse("FROM m\nDRAFT qwen3:0.6b").draft == "qwen3:0.6b"
    assert parse("FROM m\nDRAFT hf:o/r:Q8_0").draft == "hf:o/r:Q8_0"
    assert parse("FROM m").draft is None


def test_a_file_that_is_named_like_a_model_is_said_to_be_meant(tmp_path):
    (tmp_path / "qwen3").write_bytes(b"GGUF")

    [warning] = parse("FROM qwen3", tmp_path).warnings

    assert f"means the file {tmp_path / 'qwen3'}, not a model of that name" in warning
    assert parse("FROM ./qwen3", tmp_path).warnings == ()


def adapter_file(path: Path, **kinds: str) -> Path:
    entries = [entry(key, STRING, text(value)) for key, value in kinds.items()]
    path.write_bytes(gguf(entries))
    return path


def test_a_lora_is_taken_and_a_whole_model_refused(tmp_path):
    lora = {"general.type": "adapter", "general.architecture": "qwen3", "adapter.type": "lora"}
    adapter_file(tmp_path / "x-Q4_K_M.gguf", **lora)
    adapter_file(tmp_path / "whole.gguf", **{"general.architecture": "qwen3"})
    adapter_file(tmp_path / "vector.gguf", **(lora | {"adapter.type": "ia3"}))
    (tmp_path / "not.gguf").write_bytes(b"\x10\0\0\0\0\0\0\0{}" + bytes(64))
    (tmp_path / "peft").mkdir()

    found = parse("FROM m\nADAPTER ./x-Q4_K_M.gguf", tmp_path)
    assert found.adapter == str(tmp_path / "x-Q4_K_M.gguf")
    assert found.warnings == ()
    for name, says in (
        ("whole.gguf", r"whole model \(qwen3\), not a LoRA adapter: use FROM ./whole.gguf"),
        ("vector.gguf", "ia3 adapter; only LoRA"),
        ("not.gguf", "safetensors file.*convert_lora_to_gguf.py"),
        ("peft", "is a directory.*convert_lora_to_gguf.py"),
    ):
        with pytest.raises(ConfigError, match=rf"^Modelfile:2:9: .*{says}"):
            parse(f"FROM m\nADAPTER ./{name}", tmp_path)


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"a": {}}, "required": ["a"]},
    },
}


def test_tools_from_a_file_and_from_the_text(tmp_path):
    other = {"type": "function", "function": {"name": "other"}}
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]), encoding="utf-8")

    found = parse(f'FROM m\nTOOLS ./tools.json\nTOOLS """{json.dumps(other)}"""', tmp_path)

    assert found.tools == (TOOL, other)


def test_children_win_over_parents():
    files = {
        "base": parse(
            "FROM qwen3:8b\nSYSTEM base\nPARAMETER num_ctx 4096\nPARAMETER temperature 1\n"
            "PARAMETER top_k 5\nPARAMETER stop a\nPARAMETER overflow drop_oldest\n"
            "PARAMETER num_gpu 1\nADAPTER ./l.gguf\nPARAMETER adapter_scale 2\nLICENSE MIT"
        ),
        "middle": parse('FROM base\nSYSTEM ""\nPARAMETER temperature 0'),
    }
    files = {name: parse_named(name, modelfile) for name, modelfile in files.items()}
    child = parse_named(
        "child", parse("FROM middle\nPARAMETER stop b\nPARAMETER overflow refuse\nADAPTER ./n.gguf")
    )

    found = resolve(child, files.get)

    assert (found.origin, found.base, found.system) == ("child", "qwen3:8b", "")
    assert found.n_ctx == 4096
    assert found.sampling == {"temperature": 0.0, "top_k": 5}
    assert found.stop == ("b",)
    assert found.overflow == "refuse"
    assert found.license == ("MIT",)
    assert found.adapter == str(Path("n.gguf").absolute())
    assert found.adapter_scale == 1.0, "the parent's scale was for the parent's adapter"
    assert [warning for warning in found.warnings if "counts layers" in warning]


def parse_named(origin: str, modelfile: Modelfile) -> Modelfile:
    from dataclasses import replace

    return replace(modelfile, origin=origin, name=origin)


def test_a_child_can_go_back_to_automatic():
    parent = parse_named("p", parse("FROM m\nPARAMETER num_gpu 3\nPARAMETER num_predict 5"))
    child = parse_named("c", parse("FROM p\nPARAMETER num_gpu auto\nPARAMETER num_predict -1"))

    found = resolve(child, {"p": parent}.get)

    assert found.n_gpu_layers is None
    assert found.max_tokens is None


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ({"a": "a"}, "a: FROM a means this file itself"),
        ({"a": "b", "b": "a"}, "in a circle: a → b → a"),
        ({"a": "b", "b": "c", "c": "b"}, "in a circle: b → c → b"),
    ],
)
def test_circles_are_found(links, says):
    files = {name: parse_named(name, parse(f"FROM {base}")) for name, base in links.items()}

    with pytest.raises(ConfigError, match=says):
        resolve(files["a"], files.get)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("x/tech.Modelfile", "tech"),
        ("x/tech.docs.modelfile", "tech.docs"),
        ("x/Modelfile.tech", "tech"),
        ("tech/Modelfile", "tech"),
        ("tech/modelfile", "tech"),
        ("x/tech.gguf", None),
        ("x/.Modelfile", None),
        ("x/tools.json", None),
    ],
)
def test_names_come_from_the_file(path, name):
    assert served_name(Path(path)) == name


def test_a_folder_is_searched(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / ".checkpoints").mkdir()
    hidden = ("._a.Modelfile", ".checkpoints/a.Modelfile")
    for name in ("a.Modelfile", "docs/Modelfile", "notes.md", "docs/tools.json", *hidden):
        (tmp_path / name).write_text("FROM m", encoding="utf-8")

    assert find_modelfiles(tmp_path) == {
        "a": tmp_path / "a.Modelfile",
        "docs": tmp_path / "docs" / "Modelfile",
    }
    (tmp_path / "Modelfile.a").write_text("FROM m", encoding="utf-8")
    with pytest.raises(ConfigError, match="would both be served as 'a'"):
        find_modelfiles(tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        find_modelfiles(tmp_path / "none")


def load_shipped(base: str) -> Modelfile | None:
    path = Path(base)
    return read_modelfile(path) if served_name(path) else None


@pytest.mark.parametrize("name", sorted(find_modelfiles(SHIPPED)))
def test_shipped_files_are_sound(name):
    found = resolve(read_modelfile(find_modelfiles(SHIPPED)[name]), load_shipped)

    assert found.warnings == ()
    assert found.name == name
    assert found.n_ctx is not None
    assert found.max_tokens is not None
    assert found.max_tokens <= found.n_ctx // 2, "room for a question"
    assert found.base == "qwen3:32b-q4_k_m" or Path(found.base).is_file()


def test_the_reports_configurations_are_shipped():
    shipped = {
        name: resolve(read_modelfile(path), load_shipped)
        for name, path in find_modelfiles(SHIPPED).items()
    }

    assert shipped.keys() >= {"qwen3-32b-24g", "long-document", "TechDocAssistant"}
    assert shipped["qwen3-32b-24g"].n_ctx == 8192
    assert shipped["qwen3-32b-24g"].max_tokens == 2048
    [tool] = shipped["TechDocAssistant"].tools
    assert tool["function"]["name"] == "fetch_api_docs"
    assert list(tool["function"]["parameters"]["properties"]) == ["tech_stack", "version"]
    assert shipped["long-document"].overflow == "refuse"
    assert shipped["TechDocAssistant"].overflow == "drop_oldest"


LINES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "FROM m",
            'SYSTEM """',
            '"""',
            'SYSTEM "',
            "PARAMETER stop ",
            "MESSAGE user",
            "TEMPLATE {{ .Prompt }}",
            "TEMPLATE {{ if .X",
            "TOOLS [",
            "ADAPTER x",
            "LICENSE",
        ]
    ),
)


@given(st.lists(LINES, max_size=6).map("\n".join))
def test_any_text_is_read_or_refused_with_a_place(source):
    try:
        found = parse(source)
    except ConfigError as error:
        refusal = error.message
    else:
        assert found.base
        return
    origin, line, column, _ = refusal.split(":", 3)
    assert origin == "Modelfile"
    assert 1 <= int(line) <= source.count("\n") + source.count("\r") + 1
    assert int(column) >= 1
