"""Mistakes in Modelfiles: where they are, and what the message says to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.catalog.modelfile import parse_modelfile, read_modelfile
from server.catalog.modelfile.reading import MOST_BYTES
from server.core.errors import ConfigError


@pytest.mark.parametrize(
    ("source", "place", "says"),
    [
        ("", "1:1", "no FROM. Add one: FROM qwen3:32b"),
        ("SYSTEM hi", "1:1", "no FROM"),
        ("FRM m", "1:1", "'FRM' is not an instruction; did you mean FROM?"),
        ("FROM m\n  PARAMTER seed 1", "2:3", "did you mean PARAMETER?"),
        ("FROM m\nCOPY a b", "2:1", "A line begins with one of FROM,"),
        ("FROM m\nSYSTEM You are\nhelpful", "3:1", "belongs to the text of SYSTEM above, put that"),
        ("FROM m\n// no comment", "2:1", "'//' is not an instruction"),
        ("\x1f", "1:1", "is not an instruction"),
        ("FROM", "1:5", "FROM needs a value on the same line"),
        ("FROM   \nSYSTEM x", "1:5", "needs a value on the same line"),
        ('FROM ""', "1:7", "needs the name or path"),
        ("FROM m # mine", "1:6", "comment must be on a line of its own"),
        ("FROM a\nFROM b", "2:1", "a second FROM; the first is at Modelfile:1:1"),
        ("FROM m\nADAPTER a.gguf\nADAPTER b.gguf", "3:1", "a second ADAPTER"),
        ("FROM m\nDRAFT a.gguf\nDRAFT b.gguf", "3:1", "a second DRAFT"),
        ("FROM m\nDRAFT", "2:6", "DRAFT needs a value on the same line"),
        ('FROM m\nDRAFT ""', "2:8", "DRAFT needs the name or path of a model"),
        ("FROM m\nDRAFT 'a'", "2:7", "Write DRAFT a"),
        ("FROM m\nDRAFT a.safetensors", "2:7", "is not a GGUF"),
        ("FROM ./m.safetensors", "1:6", "not a GGUF. Convert it"),
        ("FROM './m.gguf'", "1:6", "Write FROM ./m.gguf"),
        ("FROM m\nSYSTEM:x", "2:7", "must be followed by a blank, not by ':'"),
        ('FROM m\nSYSTEM """open\nPARAMETER x', "2:8", "opened here and never closed"),
        ('FROM m\nSYSTEM """a""" b', "2:8", 'the """ at Modelfile:2:12 does not end its line'),
        (
            'FROM m\nSYSTEM "open\nPARAMETER stop "x"',
            "2:8",
            "takes in the instruction at Modelfile:3:1",
        ),
        ("FROM m\nPARAMETER", "2:10", "PARAMETER needs a value on the same line"),
        ("FROM m\nPARAMETER ?", "2:11", "PARAMETER needs a parameter's name here"),
        ("FROM m\nPARAMETER seed", "2:15", "PARAMETER seed needs a value"),
        ("FROM m\nPARAMETER temprature 1", "2:11", "did you mean temperature?"),
        ("FROM m\nPARAMETER max_tokens 1", "2:11", "its name here is num_predict"),
        ("FROM m\nPARAMETER kv_type q8_0", "2:11", "set engine.kv_type in the settings"),
        (
            "FROM m\nPARAMETER num_ctx 4k",
            "2:19",
            "num_ctx must be a whole number, at least 16, not '4k'",
        ),
        ("FROM m\nPARAMETER num_ctx 8", "2:19", "at least 16"),
        ("FROM m\nPARAMETER num_ctx 8_192", "2:19", "whole number"),
        ("FROM m\nPARAMETER num_ctx 8192 # big", "2:19", "a comment must be on a line of its own"),
        ("FROM m\nPARAMETER num_gpu some", "2:19", "or `all`, or `auto`, not 'some'"),
        ("FROM m\nPARAMETER num_predict 0", "2:23", "at least 1, or -1"),
        ("FROM m\nPARAMETER temperature hot", "2:23", "a number from 0 to 100, not 'hot'"),
        ("FROM m\nPARAMETER temperature nan", "2:23", "a number from 0 to 100"),
        ("FROM m\nPARAMETER top_p 1.5", "2:17", "from 0 to 1"),
        ("FROM m\nPARAMETER typical_p 0", "2:21", "above 0 to 1"),
        ("FROM m\nPARAMETER seed 1.5", "2:16", "a whole number of 64 bits"),
        ('FROM m\nPARAMETER stop ""', "2:17", "must not be empty"),
        ("FROM m\nPARAMETER timeout 0", "2:19", "longer than 0"),
        ("FROM m\nPARAMETER timeout soon", "2:19", "a duration such as 120s"),
        ("FROM m\nPARAMETER keep_alive 5 min", "2:22", "such as 5m, 0 (unload at once)"),
        ("FROM m\nPARAMETER overflow truncate", "2:20", "refuse or drop_oldest, not 'truncate'"),
        ("FROM m\nPARAMETER pin yes", "2:15", "pin must be true or false, not 'yes'"),
        ("FROM m\nMESSAGE bot hi", "2:9", "one of system, user, assistant, not 'bot'"),
        ("FROM m\nMESSAGE user: hi", "2:13", "must be followed by a blank"),
        ("FROM m\nTOOLS ./none.json", "2:7", "TOOLS cannot be read from"),
        ('FROM m\nTOOLS """[\n {"type" 1}]"""', "3:10", "not JSON: Expecting ':' delimiter"),
        ('FROM m\nTOOLS [{"name": "f"}]', "2:7", "tool 1 is a bare function. Wrap it"),
        ("FROM m\nTOOLS [1]", "2:7", "tool 1 is not an object but 1"),
        ('FROM m\nTEMPLATE """a\n{{ .Nope }}"""', "2:13", "neither .Messages nor .Prompt"),
        ('FROM m\nTEMPLATE """{{ .Prompt }}\n {{ .Nope }}"""', "3:5", ".Nope is not known"),
        ("FROM m\nTEMPLATE {% if %}", "2:10", "not valid Jinja"),
    ],
)
def test_mistakes_have_a_place_and_advice(source, place, says):
    with pytest.raises(ConfigError) as caught:
        parse_modelfile(source, origin="Modelfile", folder=Path("/nowhere"))

    message = caught.value.message
    assert message.startswith(f"Modelfile:{place}: "), message
    assert says in message


FUNCTION = '{"type": "function", "function": %s}'


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        ('{"type": "function"}', 'an object as "function"'),
        ('{"type": "tool", "function": {"name": "f"}}', 'must have "type": "function"'),
        ('{"type": "function", "func": {}}', "unknown key 'func'; did you mean function?"),
        (FUNCTION % "{}", "a name of 1 to 64 letters"),
        (FUNCTION % '{"name": "no blanks"}', "a name of 1 to 64 letters"),
        (FUNCTION % '{"name": "f", "desc": "x"}', "unknown key 'desc'"),
        (FUNCTION % '{"name": "f", "description": 1}', "text as its description"),
        (FUNCTION % '{"name": "f", "strict": 1}', 'true or false as "strict"'),
        (FUNCTION % '{"name": "f", "parameters": []}', 'JSON schema of "type": "object"'),
        (FUNCTION % '{"name": "f", "parameters": {"type": "string"}}', '"type": "object"'),
        (FUNCTION % '{"name": "f", "parameters": {"properties": []}}', '"properties"'),
        (FUNCTION % '{"name": "f", "parameters": {"required": "a"}}', '"required"'),
        (
            FUNCTION % '{"name": "f", "parameters": {"properties": {"a": {}}, "required": ["b"]}}',
            "requires 'b', which is not among",
        ),
    ],
)
def test_tools_are_checked(tmp_path, tool, says):
    path = tmp_path / "tools.json"
    path.write_text(f"\n[{tool}]", encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        parse_modelfile("FROM m\nTOOLS tools.json", origin="Modelfile", folder=tmp_path)

    assert caught.value.message.startswith(f"{path}:2:1: tool 1 ")
    assert says in caught.value.message


def test_two_tools_may_not_share_a_name():
    tool = FUNCTION % '{"name": "f"}'

    with pytest.raises(ConfigError, match=r"^Modelfile:3:1: there are two tools with the name 'f'"):
        parse_modelfile(f"FROM m\nTOOLS {tool}\nTOOLS {tool}", origin="Modelfile")


def test_deep_json_is_an_error():
    with pytest.raises(ConfigError, match=r"nested too deep|must be|is not an object"):
        parse_modelfile("FROM m\nTOOLS " + "[" * 200_000 + "]" * 200_000, origin="Modelfile")


def test_a_path_from_the_wrong_folder_is_put_right(tmp_path, monkeypatch):
    (tmp_path / "modelfiles").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=r"Write FROM \.\./m\.gguf"):
        parse_modelfile("FROM m.gguf", origin="Modelfile", folder=Path("modelfiles"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GGUF\x03\0\0\0", "is a GGUF, not a Modelfile"),
        (b"#" * (MOST_BYTES + 1), "is larger than 1048576 bytes"),
        (b"FROM m\nSYSTEM \xff", ":2:1: this line is not utf-8. Save it as UTF-8."),
    ],
)
def test_files_that_are_no_text(tmp_path, data, says):
    path = tmp_path / "Modelfile"
    path.write_bytes(data)

    with pytest.raises(ConfigError) as caught:
        read_modelfile(path)

    assert caught.value.message.startswith(str(path))
    assert says in caught.value.message


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_modelfile(tmp_path / "Modelfile")


def test_a_text_of_many_lines_is_read_to_its_end():
    """Reading takes time in proportion to the text: each line is looked at once."""
    text = "x\n" * (MOST_BYTES // 2)

    assert parse_modelfile(f'FROM m\nSYSTEM """{text}"""', origin="Modelfile").system == text
