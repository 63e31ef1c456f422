"""Aliases of the configuration, held against what is served."""

from __future__ import annotations

import pytest

from server.assembly.routes import routes_of
from server.core.errors import ConfigError
from server.settings import SettingsError, load

SERVED = ("qwen3:32b", "qwen2:7b", "small", "docs")


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
        ("aliases: {a: zebra}", "there are 'qwen3:32b', 'qwen2:7b', 'small'"),
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
        ("aliases: {a: {b: 1.0e308, c: 1.0e308}}", "a: the sum of the weights is too large"),
        ("aliases: [a]", "must be lines of NAME: MODEL"),
    ],
)
def test_malformed_aliases_are_told_with_their_line(tmp_path, text, told):
    with pytest.raises(SettingsError, match=f"c.yaml:1: aliases: .*{told}"):
        routes(tmp_path, text)


def fallback(text):
    return f"gateway: {{fallback: {{{text}}}}}"


def test_one_model_may_answer_for_all_others(tmp_path):
    found = routes(tmp_path, fallback("model: small"))
    assert found.fallbacks == dict.fromkeys(("qwen3:32b", "qwen2:7b", "docs"), ("small",))
    assert found.reasons == {"loading", "failed", "dead", "stalled", "gpu_memory", "remote"}


def test_lists_are_in_order_and_each_target_is_followed_by_its_own(tmp_path):
    text = "model: small, models: {qwen3:32b: [qwen2:7b, small], qwen2:7b: docs}"
    found = routes(tmp_path, fallback(text)).fallbacks
    assert found["qwen3:32b"] == ("qwen2:7b", "docs", "small")
    assert found["qwen2:7b"] == ("docs",)
    assert found["docs"] == ("small",)


def test_who_answers_for_all_has_only_its_own_list_behind_it(tmp_path):
    found = routes(tmp_path, fallback("model: small, models: {small: [docs]}")).fallbacks
    assert found == {"small": ("docs",), **dict.fromkeys(SERVED[:2], ("small", "docs"))}


def test_a_list_may_name_an_alias(tmp_path):
    text = "aliases: {spare: small}\n" + fallback("models: {docs: [spare]}, when: [loading]")
    found = routes(tmp_path, text)
    assert (found.fallbacks, found.reasons) == ({"docs": ("small",)}, {"loading"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: {docs: [docs]}", "docs → docs is a loop"),
        (
            "models: {qwen3:32b: [qwen2:7b], qwen2:7b: [small, docs], docs: [qwen3:32b]}",
            "qwen3:32b → qwen2:7b → docs → qwen3:32b is a loop",
        ),
        ("model: qwen2:8b", "gateway.fallback.model: .* did you mean 'qwen2:7b'"),
        ("models: {docz: [small]}", "gateway.fallback.models.docz: .* did you mean 'docs'"),
        ("models: {docs: [zebra]}", "gateway.fallback.models.docs: no model is served"),
        ("models: {docs: [both]}", "the alias 'both' leads to several models"),
        ("models: {both: [docs]}", "'both' is an alias. Give its models lists of their own"),
    ],
)
def test_fallbacks_that_lead_nowhere_are_refused(tmp_path, text, told):
    aliases = "aliases: {both: {small: 1, docs: 1}}\n"
    with pytest.raises(ConfigError, match=told):
        routes(tmp_path, aliases + fallback(text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: {docs: 7}", "models: docs: must be a name or a list of names"),
        ("models: {docs: [7]}", "models: docs: must be a name or a list of names"),
        ("models: [docs]", "must be lines of MODEL"),
        ("when: [lunch]", "must be one of loading, failed, dead"),
        ("when: 7", "must be a list of loading, failed"),
    ],
)
def test_malformed_fallbacks_are_told_with_their_line(tmp_path, text, told):
    with pytest.raises(SettingsError, match=f"c.yaml:1: gateway.fallback.*{told}"):
        routes(tmp_path, fallback(text))


def test_reasons_can_come_from_a_variable():
    found = load(environ={"ONEGPU_GATEWAY__FALLBACK__WHEN": "loading, queue_full"}).settings
    assert found.gateway.fallback.when == ("loading", "queue_full")
