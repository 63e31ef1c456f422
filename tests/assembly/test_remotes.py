"""Remotes of the configuration, and their replacement while the server runs."""

from __future__ import annotations

import pytest

from server.assembly.routes import prepare_routes, standby_names
from server.core.errors import ConfigError, InvalidRequest, ModelNotAllowed
from server.gateway.principal import Principal
from server.gateway.remote.model import UNKNOWN
from server.settings import SettingsError, load
from server.settings.report import effective_values
from server.settings.snapshot import from_bytes, to_bytes
from server.store.keys import KeyLimits
from tests.serving import MODEL, Stack

pytestmark = pytest.mark.anyio
CLOUD = "cloud: {base_url: https://api.example.com/v1/, model: theirs"
SECRET = "sk-very-secret"


def settings(tmp_path, text, **environ):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, environ=environ)


@pytest.fixture
def stack():
    made = Stack()
    yield made
    made.service.shutdown()


def prepared(stack, loaded):
    router, line = stack.service.router, stack.admission
    return prepare_routes(loaded.settings, router, line, stack.parts.clock)


def routes(stack, loaded):
    prepared(stack, loaded)()
    return stack.service.router.routes


async def test_a_remote_is_made_as_it_is_written(tmp_path, stack):
    text = (
        f"remotes: {{{CLOUD}, api_key: {SECRET}, read_timeout: 90s, connections: 7, n_ctx: 100, "
        "probe_every: null, failures: 2, pause: 1m, max_tokens: 9}}\n"
        "aliases: {gpt: cloud}\ngateway: {fallback: {model: cloud}}"
    )
    loaded = settings(tmp_path, text)
    found = routes(stack, loaded)
    one = found.remotes["cloud"]
    limits = one.remote.limits
    assert (limits.base_url, limits.model) == ("https://api.example.com/v1", "theirs")
    assert (limits.api_key, limits.read_timeout, limits.keepalive) == (SECRET, 90.0, 7)
    assert (limits.probe_every, limits.breaker.failures, limits.breaker.pause) == (None, 2, 60.0)
    assert (one.agent.n_ctx, limits.max_tokens, one.remote.lane.slots) == (100, 9, 7)
    assert found.aliases["gpt"].targets == (("cloud", 1.0),)
    assert found.fallbacks == {MODEL: ("cloud",)}
    assert standby_names(loaded.settings) == [], "nothing is loaded for it here"
    assert from_bytes(to_bytes(loaded.settings)) == loaded.settings
    await one.remote.close()


async def test_the_defaults_are_a_pool_a_probe_and_a_breaker(tmp_path, stack):
    one = routes(stack, settings(tmp_path, f"remotes: {{{CLOUD}}}}}")).remotes["cloud"]
    limits = one.remote.limits
    assert (limits.connections, limits.keepalive, limits.probe_every) == (200, 100, 30.0)
    assert (limits.breaker.failures, one.agent.n_ctx) == (5, UNKNOWN)
    await one.remote.close()


async def test_a_key_is_nowhere_but_where_it_is_used(tmp_path):
    loaded = settings(tmp_path, f"remotes: {{{CLOUD}, api_key_env: CLOUD_KEY}}}}", CLOUD_KEY=SECRET)
    assert loaded.settings.remotes["cloud"].api_key == SECRET
    shown = "\n".join(f"{row.name} {row.value}" for row in effective_values(loaded))
    assert SECRET not in shown + repr(loaded.settings) + str(loaded.settings)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("api_key_env: NOT_SET", "api_key_env: the variable NOT_SET is not set"),
        ("api_key: a, api_key_env: B", "api_key_env: must be left out where api_key is given"),
        ("api_key: very secret", "api_key: must be text without spaces"),
        ("api_key: 12345678", "api_key: must be text without spaces"),
        ("api_key: [secret]", "api_key: must be text without spaces"),
        ("base_url: 'http://169.254.169.254/v1'", "base_url: must not be an address where clouds"),
        ("base_url: 7", "base_url: must be an address such as"),
        ("connections: 0", "connections: must be at least 1"),
        ("model: ''", "model: must not be empty"),
        ("modell: x", "modell: unknown key; did you mean remotes.cloud.model"),
    ],
)
def test_mistakes_are_told_with_their_line_and_without_the_key(tmp_path, entry, told):
    given = {"base_url": "https://api.example.com/v1", "model": "theirs"}
    given |= dict(part.split(": ", 1) for part in entry.split(", "))
    lines = ["remotes:", "  cloud:", *(f"    {key}: {value}" for key, value in given.items())]
    with pytest.raises(SettingsError) as caught:
        settings(tmp_path, "\n".join(lines) + "\n")
    assert told in str(caught.value)
    assert "c.yaml:" in str(caught.value)
    assert "very secret" not in str(caught.value)
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"remotes: {{{MODEL}: {{base_url: 'http://h/v1', model: m}}}}", "is the name of a served"),
        (
            f"remotes: {{{CLOUD}}}}}\naliases: {{cloud: {MODEL}}}",
            "remotes: 'cloud' is an alias already",
        ),
        (f"remotes: {{{CLOUD}}}}}\naliases: {{gpt: clout}}", "did you mean 'cloud'"),
        (
            f"remotes: {{{CLOUD}}}}}\n"
            f"gateway: {{fallback: {{models: {{cloud: [{MODEL}], {MODEL}: [cloud]}}}}}}",
            "is a loop",
        ),
    ],
)
async def test_names_that_clash_are_refused_before_anything_is_made(tmp_path, stack, text, told):
    lanes = len(stack.admission._lanes)
    with pytest.raises(ConfigError, match=told):
        routes(stack, settings(tmp_path, text))
    assert len(stack.admission._lanes) == lanes


async def test_a_reload_keeps_what_has_not_changed(tmp_path, stack):
    other = "other: {base_url: 'http://127.0.0.1:1/v1', model: m"
    router = stack.service.router
    routes(stack, settings(tmp_path, f"remotes: {{{CLOUD}}}, {other}}}}}"))
    before, lanes = router.routes.remotes, len(stack.admission._lanes)
    changed = f"remotes: {{{CLOUD}, n_ctx: 50}}, {other}, api_key: new}}}}"
    commit = prepared(stack, settings(tmp_path, changed))
    assert router.routes.remotes is before
    assert len(stack.admission._lanes) == lanes, "whoever prepares may have to think better of it"
    commit()
    after = router.routes.remotes
    assert after["cloud"].remote is before["cloud"].remote
    assert after["cloud"].agent.n_ctx == 50
    assert after["other"].remote is not before["other"].remote
    with pytest.raises(ConfigError):
        routes(stack, settings(tmp_path, f"aliases: {{{MODEL}: cloud}}"))
    assert router.routes.remotes is after, "a mistake changes nothing"
    for one in (*before.values(), *after.values()):
        await one.remote.close()


async def test_a_key_limited_to_models_reaches_no_other_remote(tmp_path, stack):
    router = stack.service.router
    routes(stack, settings(tmp_path, f"remotes: {{{CLOUD}}}}}"))
    limited = Principal("k", limits=KeyLimits(models=(MODEL,)))
    with pytest.raises(ModelNotAllowed):
        router.find("cloud", limited)
    assert router.remotes(limited) == []
    own = Principal("k", limits=KeyLimits(models=("cloud",), max_tokens=5))
    assert router.find("cloud", own).agent.max_tokens == 5
    with pytest.raises(InvalidRequest, match="is on another server"):
        router.pick("cloud", own)
    await router.routes.remotes["cloud"].remote.close()
