"""Aliases of the configuration, held against what is served."""

from __future__ import annotations

import pytest

from server.assembly.routes import routes_of
from server.core.errors import ConfigError
from server.settings import SettingsError, load

SERVED = ("qwen3:32b", "qwen2:7b")


def routes(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return routes_of(load(path, environ={}).settings, SERVED)


def test_aliases_are_read_in_both_forms(tmp_path):
    text = "aliases:\n  gpt-4o-mini: qwen3:32b\n  gpt: {qwen2:7b: 90, qwen3:32b: 10}\n"
    found = routes(tmp_path, text).aliases
    assert found["gpt-4o-mini"].targets == (("qwen3:32b", 1.0),)
    assert found["gpt"].targets == (("qwen2:7b", 90.0), ("qwen3:32b", 10.0))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("aliases: {qwen2:7b: qwen3:32b}", "'qwen2:7b' is the name of a served model already"),
        ("aliases: {a: b, b: qwen2:7b}", "aliases.a: 'b' is an alias itself"),
        ("aliases: {a: qwen3:3b}", "aliases.a: .*'qwen3:3b'; did you mean 'qwen3:32b'"),
        ("aliases: {a: zebra}", "there are 'qwen3:32b', 'qwen2:7b'"),
    ],
)
def test_what_leads_nowhere_is_refused(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told):
        routes(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("aliases: {a: }", "a: must be a name, or names with weights"),
        ("aliases: {a: 7}", "a: must be a name, or names with weights"),
        ("aliases: {a: {}}", "a: must be a name, or names with weights"),
        ("aliases: {a: {b: -1}}", "a: the weight of b must be a number, 0 or more"),
        ("aliases: {a: {b: much}}", "a: the weight of b must be a number, 0 or more"),
        ("aliases: {a: {b: 0}}", "a: at least one weight must be more than 0"),
        ("aliases: [a]", "must be lines of NAME: MODEL"),
    ],
)
def test_malformed_aliases_are_told_with_their_line(tmp_path, text, told):
    with pytest.raises(SettingsError, match=f"c.yaml:1: aliases: .*{told}"):
        routes(tmp_path, text)
