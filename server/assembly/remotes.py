"""Models of other servers: the settings' remotes as the gateway knows them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from server.core.clock import Clock
from server.core.errors import ConfigError
from server.gateway.agent import Agent
from server.gateway.line import Line
from server.gateway.remote.breaker import BreakerLimits
from server.gateway.remote.model import UNKNOWN, Distant, Remote, RemoteLimits
from server.settings import RemoteSettings, Settings


def check_remotes(settings: Settings, served: Collection[str]) -> None:
    """Raise `ConfigError` where a remote has the name of something else."""
    for name in settings.remotes:
        if name in served:
            raise ConfigError(f"remotes: {name!r} is the name of a served model already.")
        if name in settings.aliases:
            raise ConfigError(f"remotes: {name!r} is an alias already.")


def make_remotes(
    settings: Settings, line: Line, clock: Clock, before: Mapping[str, Distant]
) -> dict[str, Distant]:
    """Return the remotes by name.

    Those of `before` whose settings are the same are kept, with all that is known of them.
    """
    found = {}
    for name, entry in settings.remotes.items():
        limits = _limits(entry)
        known = before.get(name)
        if known is not None and known.remote.limits == limits:
            remote = known.remote
        else:
            remote = Remote(name, limits, line.open_lane(limits.connections), clock)
        found[name] = Distant(Agent((name,), n_ctx=entry.n_ctx or UNKNOWN), remote)
    return found


def all_connections(settings: Settings) -> int:
    """Return how many connections there may be: of clients, and to remotes, probes included."""
    remotes = sum(entry.connections + 1 for entry in settings.remotes.values())
    return settings.server.max_connections + remotes


def _limits(entry: RemoteSettings) -> RemoteLimits:
    return RemoteLimits(
        base_url=entry.base_url,
        model=entry.model,
        api_key=entry.api_key,
        connect_timeout=entry.connect_timeout,
        read_timeout=entry.read_timeout,
        connections=entry.connections,
        keepalive=min(entry.keepalive, entry.connections),
        probe_every=entry.probe_every,
        breaker=BreakerLimits(failures=entry.failures, pause=entry.pause),
        max_tokens=entry.max_tokens,
    )
