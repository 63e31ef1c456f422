"""The configuration, read again: everything that can, at once, or nothing at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from server.assembly.connections import BoundedProtocol, ConnectionLimits
from server.assembly.live import LiveSettings
from server.assembly.parts import Parts, build
from server.assembly.reloading import Live, Reloader
from server.core.clock import SystemClock
from server.core.errors import ConfigError
from server.settings import Settings
from server.settings.fields import leaves
from tests.models import ModelSpec, write_model

pytestmark = pytest.mark.anyio

Document = dict[str, Any]


def settings(**document: Any) -> Settings:
    return Settings.model_validate(document)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "a.gguf", ModelSpec())


class Protocol(BoundedProtocol):
    limits = ConnectionLimits()


class Running:
    """Parts over a small model that is not loaded, with what a reload changes beside them."""

    def __init__(self, model: Path) -> None:
        self.base: Document = {
            "model": {"path": model, "n_gpu_layers": 0},
            "engine": {"n_ctx": 256},
        }
        before = settings(**self.base)
        self.parts: Parts = build(before, SystemClock(), Path)
        self.http = uvicorn.Config(self.parts.app, timeout_keep_alive=120)
        self.live = LiveSettings(self.parts, self.http, Protocol, "127.0.0.1", SystemClock()).all()
        self.document: Document | ConfigError = self.base
        self.reloader = Reloader(before, self._read, self.live)

    def _read(self) -> Settings:
        if isinstance(self.document, ConfigError):
            raise self.document
        return settings(**self.document)

    async def becomes(self, **document: Any) -> str:
        self.document = self.base | document
        return await self.reloader.reload()


@pytest.fixture
def running(model, monkeypatch):
    # The tests' own logging and limits stay as they are.
    monkeypatch.setattr("server.assembly.live.configure_logging", lambda *_, **__: None)
    monkeypatch.setattr("server.assembly.live.make_room", lambda _: None)
    made = Running(model)
    yield made
    made.parts.service.shutdown()


Got = Callable[[Running], object]
CASES: list[tuple[Document, Got, object]] = [
    ({"gateway": {"max_queue": 3}}, lambda r: r.parts.admission.limits.max_queue, 3),
    ({"gateway": {"aging": 3}}, lambda r: r.parts.preload[0].lane._order.aging, 3.0),
    (
        {"gateway": {"interactive_slots": 2}},
        lambda r: r.parts.preload[0].lane._limits.interactive_slots,
        2,
    ),
    (
        {"gateway": {"timeout": {"connect": 3}}},
        lambda r: r.parts.service.limits.connect_timeout,
        3.0,
    ),
    ({"gateway": {"timeout": {"read": 3}}}, lambda r: r.parts.service.limits.read_timeout, 3.0),
    ({"gateway": {"timeout": {"total": 3}}}, lambda r: r.parts.service.limits.total_timeout, 3.0),
    (
        {"gateway": {"rate_limit": {"burst": 3}}},
        lambda r: r.parts.service.limits.rate.burst,
        3,
    ),
    ({"gateway": {"share_prefixes": True}}, lambda r: r.parts.service.limits.share_prefixes, True),
    (
        {"gateway": {"idempotency": {"grace": 3}}},
        lambda r: r.parts.answers.limits.grace,
        3.0,
    ),
    (
        {"engine": {"n_ctx": 256, "stall_after": 3}},
        lambda r: (r.parts.health.limits.stall_after, r.parts.service.engines.stall_after),
        (3.0, 3.0),
    ),
    ({"aliases": {"x": "a"}}, lambda r: r.parts.router.pick("x").agent.name, "a"),
    (
        {"remotes": {"far": {"base_url": "https://far.test/v1", "model": "m"}}},
        lambda r: sorted(r.parts.router.routes.remotes),
        ["far"],
    ),
    ({"server": {"max_connections": 3}}, lambda _: Protocol.limits.connections, 3),
    ({"server": {"header_timeout": 3}}, lambda _: Protocol.limits.head_seconds, 3.0),
    ({"server": {"idle_timeout": 2.5}}, lambda r: r.http.timeout_keep_alive, 3),
    (
        {"server": {"shutdown_grace": 3}},
        lambda r: r.reloader.settings.server.shutdown_grace,
        3.0,
    ),
]


@pytest.mark.parametrize(("document", "got", "wanted"), CASES)
async def test_a_setting_reaches_its_part(running, document, got, wanted) -> None:
    if "aliases" not in document:
        assert got(running) != wanted

    told = await running.becomes(**document)

    assert got(running) == wanted
    assert told.startswith("The configuration was read again: ")


@pytest.mark.parametrize(
    "document",
    [
        {"gateway": {"strict": True}},
        {"gateway": {"stream_hold": 1}},
        {"gateway": {"timeout": {"write": 3}}},
        {"server": {"max_request_size": 3}},
        {"server": {"cors_origins": ["https://a.test"]}},
        {"server": {"open_metrics": True}},
        {"server": {"host_names": ["a.test"]}},
    ],
)
async def test_what_the_endpoints_go_by_makes_another_application(running, document) -> None:
    before = running.parts.app.current
    await running.becomes(**document)
    assert running.parts.app.current is not before


async def test_what_has_not_changed_is_left_alone(running, caplog) -> None:
    before = running.parts.app.current, running.parts.admission.limits
    with caplog.at_level(logging.INFO):
        told = await running.becomes()
    assert told == "The configuration was read again; nothing has changed."
    assert told in caplog.text
    assert (running.parts.app.current, running.parts.admission.limits) == before


async def test_what_needs_a_restart_is_told_and_the_rest_applies(running, caplog) -> None:
    with caplog.at_level(logging.INFO):
        await running.becomes(
            engine={"n_ctx": 512}, gateway={"max_queue": 3}, server={"port": 1}, hub={"token": "s3"}
        )
    assert "was read again: gateway.max_queue 64 → 3." in caplog.text
    assert "Only a restart brings hub.token null → (set), engine.n_ctx 256 → 512, server.port" in (
        caplog.text
    )
    assert "s3" not in caplog.text.replace("s3.", "")
    in_force = running.reloader.settings
    assert (in_force.engine.n_ctx, in_force.gateway.max_queue) == (256, 3)


async def test_one_part_that_cannot_keeps_all_of_the_old_one(running, caplog) -> None:
    before = running.parts.app.current

    told = await running.becomes(
        aliases={"x": "nobody"},
        gateway={"max_queue": 3, "strict": True},
        logging={"level": "error"},
    )

    assert told.startswith("The configuration stays as it was: aliases.x: no model is served under")
    assert told in caplog.text
    assert running.parts.admission.limits.max_queue == 64
    assert running.parts.app.current is before
    assert running.reloader.settings == settings(**running.base)


async def test_a_file_that_is_wrong_keeps_the_old_one(running, caplog) -> None:
    running.document = ConfigError("onegpu.yaml:3: engine.slots: must be at most 256")
    told = await running.reloader.reload()
    assert told == (
        "The configuration stays as it was: onegpu.yaml:3: engine.slots: must be at most 256"
    )
    # And it is not the end of all reloads.
    await running.becomes(gateway={"max_queue": 3})
    assert running.parts.admission.limits.max_queue == 3


async def test_a_bug_in_a_part_keeps_the_old_one(running) -> None:
    def broken(_: Settings) -> Callable[[], None]:
        raise ZeroDivisionError

    running.live.append(Live(("gateway.max_queue",), broken))
    assert "ZeroDivisionError" in await running.becomes(gateway={"max_queue": 3})
    assert running.parts.admission.limits.max_queue == 64


async def test_no_keys_beyond_this_machine_are_refused_at_a_reload_too(model) -> None:
    parts = build(settings(model={"path": model}), SystemClock(), Path)
    open_to_all = settings(
        model={"path": model}, data_dir="/nonexistent/x", server={"allow_no_keys": True}
    )
    live = LiveSettings(parts, uvicorn.Config(parts.app), Protocol, "0.0.0.0", SystemClock()).all()
    closed = settings(model={"path": model}, data_dir="/nonexistent/x")
    reloader = Reloader(open_to_all, lambda: closed, live)

    assert "it has no API keys" in await reloader.reload()

    parts.service.shutdown()
    assert reloader.settings is open_to_all


async def test_what_must_go_with_a_setting_that_waits_waits_too(model) -> None:
    """Half of two settings that belong together would be a configuration that nobody wrote."""
    parts = build(settings(model={"path": model}), SystemClock(), Path)
    live = LiveSettings(
        parts, uvicorn.Config(parts.app), Protocol, "127.0.0.1", SystemClock()
    ).all()
    new = settings(
        model={"path": model}, memory={"reserve": "4GiB"}, gateway={"gpu_guard": {"high": "3GiB"}}
    )
    before = settings(model={"path": model})
    reloader = Reloader(before, lambda: new, live)

    assert "what stays until a restart" in await reloader.reload()

    parts.service.shutdown()
    assert reloader.settings is before


def test_the_documents_say_which_settings_need_a_restart(model) -> None:
    parts = build(settings(model={"path": model}), SystemClock(), Path)
    parts.service.shutdown()
    live = LiveSettings(
        parts, uvicorn.Config(parts.app), Protocol, "127.0.0.1", SystemClock()
    ).all()
    names = [".".join(path) for path, _ in leaves(Settings)]
    found = {name for name in names if any(one.covers(tuple(name.split("."))) for one in live)}
    sections = ("gateway.", "server.", "logging.")
    but = {
        *("gateway.gpu_guard.mode", "gateway.gpu_guard.interval"),
        *("server.host", "server.port", "server.supervised"),
    }
    documented = {name for name in names if name.startswith(sections)} - but
    assert found == documented | {"aliases", "remotes", "engine.stall_after"}
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    told = text.split("\n| key", 1)[0].partition("SIGHUP")[2]
    for name in {*but, "aliases", "remotes", "engine.stall_after", "gateway", "server", "logging"}:
        assert f"`{name}`" in told, name
