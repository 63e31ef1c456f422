"""Where names lead beyond the served models: aliases, and who answers for whom."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from server.assembly.remotes import check_remotes, make_remotes
from server.core.clock import Clock
from server.core.errors import ConfigError
from server.gateway.aliases import Alias
from server.gateway.line import Line
from server.gateway.routing import ModelRouter, Routes
from server.settings import Settings


def prepare_routes(
    settings: Settings, router: ModelRouter, line: Line, clock: Clock
) -> Callable[[], None]:
    """Return what puts the routes that `settings` ask for in force, in one step, and cannot fail.

    Raises `ConfigError` for what does not go together; until the return is called nothing changes.
    """
    served = [one.agent.name for one in router.served]
    check_remotes(settings, served)
    checked = routes_of(settings, [*served, *settings.remotes])

    def commit() -> None:
        remotes = make_remotes(settings, line, clock, router.routes.remotes)
        router.routes = replace(checked, remotes=remotes)

    return commit


def routes_of(settings: Settings, served: Collection[str]) -> Routes:
    """Return the routes over all `served` names, remotes among them. Raises `ConfigError`."""
    aliases = _aliases(settings, served)
    fallback = settings.gateway.fallback
    lists = _Lists(served, aliases)
    for name, targets in fallback.models.items():
        lists.add(name, targets)
    chains = {name: lists.chain(name) for name in fallback.models}
    if fallback.model is not None:
        default = lists.resolve("gateway.fallback.model", fallback.model)
        whole = (default, *lists.chain(default))
        # Those who answer for all have nobody behind them but what their own lists say.
        chains |= {name: whole for name in served if name not in chains and name not in whole}
    return Routes(aliases, chains, frozenset(fallback.when))


def standby_names(settings: Settings) -> list[str]:
    """Return what is named as answering for others, aliases and remotes left out."""
    fallback = settings.gateway.fallback
    names = [name for targets in fallback.models.values() for name in targets]
    if fallback.model is not None:
        names.append(fallback.model)
    others = settings.aliases.keys() | settings.remotes.keys()
    return [name for name in dict.fromkeys(names) if name not in others]


@dataclass(frozen=True, slots=True)
class _Lists:
    """Who answers for whom, as written."""

    served: Collection[str]
    aliases: Mapping[str, Alias]
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, name: str, targets: Collection[str]) -> None:
        where = f"gateway.fallback.models.{name}"
        if name in self.aliases:
            raise ConfigError(f"{where}: {name!r} is an alias. Give its models lists of their own.")
        _check_served(where, name, self.served)
        self.lists[name] = tuple(self.resolve(where, target) for target in targets)

    def resolve(self, where: str, name: str) -> str:
        """Return the model that is meant."""
        alias = self.aliases.get(name)
        if alias is not None and len(alias.targets) > 1:
            raise ConfigError(f"{where}: the alias {name!r} leads to several models. Name one.")
        target = name if alias is None else alias.targets[0][0]
        _check_served(where, target, self.served)
        return target

    def chain(self, name: str) -> tuple[str, ...]:
        """Return the targets of a model, each followed by its own. Raises `ConfigError` for a loop."""
        found: list[str] = []
        self._follow((name,), found)
        return tuple(found)

    def _follow(self, path: tuple[str, ...], found: list[str]) -> None:
        for target in self.lists.get(path[-1], ()):
            if target in path:
                loop = " → ".join([*path[path.index(target) :], target])
                raise ConfigError(f"gateway.fallback.models: {loop} is a loop. Take one step out.")
            if target not in found:
                found.append(target)
                self._follow((*path, target), found)


def _aliases(settings: Settings, served: Collection[str]) -> dict[str, Alias]:
    aliases = {}
    for name, targets in settings.aliases.items():
        if name in served:
            raise ConfigError(f"aliases: {name!r} is the name of a served model already.")
        for target in targets:
            if target in settings.aliases:
                raise ConfigError(
                    f"aliases.{name}: {target!r} is an alias itself. Name the model it stands for."
                )
            _check_served(f"aliases.{name}", target, served)
        aliases[name] = Alias(name, tuple(targets.items()))
    return aliases


def _check_served(where: str, name: str, served: Collection[str]) -> None:
    """Raise `ConfigError` where nothing is served under `name`."""
    if name in served:
        return
    near = difflib.get_close_matches(name, served, n=1, cutoff=0.6)
    told = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, served))}."
    raise ConfigError(f"{where}: no model is served under the name {name!r}; {told}")
