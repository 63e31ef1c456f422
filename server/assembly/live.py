"""Which settings need no restart, part by part. What stands in no list here needs one."""

from __future__ import annotations

import math

import uvicorn

from server.assembly.admission import answer_limits, line_limits, service_limits
from server.assembly.connections import BoundedProtocol, ConnectionLimits
from server.assembly.gpu_guard import guard_limits
from server.assembly.keys import check_keys
from server.assembly.open_files import make_room
from server.assembly.parts import Parts
from server.assembly.reloading import Commit, Live
from server.assembly.remotes import all_connections
from server.assembly.routes import prepare_routes
from server.core.clock import Clock
from server.core.errors import ConfigError
from server.gateway.health import HealthLimits
from server.ops.logging import configure_logging
from server.settings import Settings


class LiveSettings:
    """Puts settings into the parts that go by them."""

    def __init__(
        self,
        parts: Parts,
        http: uvicorn.Config,
        protocol: type[BoundedProtocol],
        address: str,
        clock: Clock,
    ) -> None:
        """`address`: what the server listens on."""
        self._parts = parts
        self._http = http
        self._protocol = protocol
        self._address = address
        self._clock = clock

    def all(self) -> list[Live]:
        """Return everything that a reload changes, with where it goes."""
        return [
            Live(
                (
                    *("gateway.max_queue", "gateway.interactive_slots"),
                    *("gateway.aging", "gateway.passing"),
                ),
                self._line,
            ),
            Live(
                (
                    *("gateway.timeout.connect", "gateway.timeout.read", "gateway.timeout.total"),
                    *("gateway.rate_limit", "gateway.share_prefixes", "engine.stall_after"),
                ),
                self._service,
            ),
            Live(("engine.stall_after",), self._health),
            Live(("gateway.idempotency",), self._answers),
            Live(
                tuple(
                    f"gateway.gpu_guard.{key}"
                    for key in ("low", "high", "used", "used_resume", "hold", "settle")
                ),
                self._guard,
            ),
            Live(
                (
                    *("gateway.timeout.write", "gateway.stream_hold", "gateway.strict"),
                    "gateway.reasoning_field",
                    *("server.max_request_size", "server.open_metrics"),
                    *("server.cors_origins", "server.host_names"),
                ),
                self._application,
            ),
            Live(("server.allow_no_keys",), self._keys),
            Live(("server.max_connections", "server.header_timeout"), self._connections),
            Live(("server.idle_timeout",), self._idle),
            # Looked up when it is needed.
            Live(("server.shutdown_grace",), lambda _: lambda: None),
            Live(("logging", "server.access_log"), _logs),
            # The last one: it opens lanes for new remotes, which nobody would close if another refused.
            Live(("aliases", "remotes", "gateway.fallback"), self._routes),
        ]

    def _line(self, settings: Settings) -> Commit:
        limits = line_limits(settings.gateway)
        return lambda: self._parts.admission.relimit(limits)

    def _service(self, settings: Settings) -> Commit:
        limits = service_limits(settings)
        return lambda: self._parts.service.relimit(limits)

    def _health(self, settings: Settings) -> Commit:
        limits = HealthLimits(settings.engine.stall_after)
        return lambda: self._parts.health.relimit(limits)

    def _answers(self, settings: Settings) -> Commit:
        limits = answer_limits(settings.gateway.idempotency)
        return lambda: self._parts.answers.relimit(limits)

    def _guard(self, settings: Settings) -> Commit:
        limits = guard_limits(settings)
        return lambda: self._parts.guard.relimit(limits)

    def _routes(self, settings: Settings) -> Commit:
        parts = self._parts
        try:
            route = prepare_routes(settings, parts.router, parts.admission, self._clock)
        except ConfigError as error:
            message = f"{error.message} (A model that is new here is served after a restart.)"
            raise ConfigError(message) from error

        def commit() -> None:
            make_room(all_connections(settings))
            route()

        return commit

    def _application(self, settings: Settings) -> Commit:
        entry, application = self._parts.app, self._parts.make_app(settings)

        def commit() -> None:
            entry.current = application

        return commit

    def _keys(self, settings: Settings) -> Commit:
        check_keys(settings, self._address)
        return lambda: None

    def _connections(self, settings: Settings) -> Commit:
        server = settings.server

        def commit() -> None:
            make_room(all_connections(settings))
            self._protocol.limits = ConnectionLimits(server.max_connections, server.header_timeout)

        return commit

    def _idle(self, settings: Settings) -> Commit:
        """Connections that are there already keep the time that they came with."""

        def commit() -> None:
            self._http.timeout_keep_alive = math.ceil(settings.server.idle_timeout)

        return commit


def _logs(settings: Settings) -> Commit:
    level, form = settings.logging.level, settings.logging.format
    return lambda: configure_logging(level, form, access_log=settings.server.access_log)
