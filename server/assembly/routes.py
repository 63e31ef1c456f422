"""Where names lead beyond the served models: the settings' aliases, held against what is served."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from server.core.errors import ConfigError
from server.gateway.aliases import Alias
from server.gateway.routing import Routes
from server.settings import Settings


def routes_of(settings: Settings, served: Collection[str]) -> Routes:
    """Return the routes over the `served` names. Raises `ConfigError`; changes nothing.

    A reload makes them anew and hands them to `ModelRouter.routes`.
    """
    aliases = {}
    for name, targets in settings.aliases.items():
        if name in served:
            raise ConfigError(f"aliases: {name!r} is the name of a served model already.")
        for target in targets:
            if target in settings.aliases:
                raise ConfigError(
                    f"aliases.{name}: {target!r} is an alias itself. Name the model it stands for."
                )
            check_served(f"aliases.{name}", target, served)
        aliases[name] = Alias(name, tuple(targets.items()))
    return Routes(aliases)


def check_served(where: str, name: str, served: Collection[str]) -> None:
    """Raise `ConfigError` where nothing is served under `name`."""
    if name in served:
        return
    near = difflib.get_close_matches(name, served, n=1, cutoff=0.6)
    told = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, served))}."
    raise ConfigError(f"{where}: no model is served under the name {name!r}; {told}")
