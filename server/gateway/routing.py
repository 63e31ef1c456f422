"""Which served model a request means."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from server.core.errors import InvalidRequest, ModelNotFound
from server.gateway.agent import Agent
from server.gateway.aliases import Alias, conversation_of
from server.gateway.host import Host
from server.gateway.principal import ANYBODY, Principal
from server.gateway.prompter import Prompter
from server.gateway.remote.model import Distant
from server.gateway.spec import GenerationSpec

_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Served:
    """A name's agent, the weights behind it, and how its prompts are written."""

    agent: Agent
    host: Host
    prompter: Prompter
    """Bound whenever the host is loaded. Agents with a template of their own have their own one."""


@dataclass(frozen=True, slots=True)
class Routes:
    """What names lead to beyond the served models; replaced as a whole while the server runs."""

    aliases: Mapping[str, Alias] = field(default_factory=dict)
    """By name. Their targets are served names, their own are not."""
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By the name that a model's answers carry: who stands in for it, in this order."""
    reasons: frozenset[str] = frozenset()
    """When somebody does, as `server.gateway.fallback.REASONS` has them."""
    remotes: Mapping[str, Distant] = field(default_factory=dict)
    """By name."""


Target = Served | Distant
"""What a name leads to."""


class ModelRouter:
    """Looks names up. The first one configured is what a request without a name gets."""

    def __init__(self, served: Sequence[Served], routes: Routes | None = None) -> None:
        """At least one. Raises `ValueError` when two have a name in common."""
        self.served = tuple(served)
        self.routes = routes or Routes()
        """May be replaced at any time: one look-up reads it once."""
        self._by_name: dict[str, Served] = {}
        for one in self.served:
            for name in one.agent.names:
                if self._by_name.setdefault(name, one) is not one:
                    message = f"two models are called {name!r}"
                    raise ValueError(message)

    @property
    def default(self) -> Served:
        """What a request without a name gets."""
        return self.served[0]

    @property
    def names(self) -> list[str]:
        """Every name, the default's first."""
        return list(self._by_name)

    def pick(
        self,
        name: str | None,
        principal: Principal = ANYBODY,
        request: GenerationSpec | None = None,
    ) -> Served:
        """Return what this process serves under `name`. Raises as `find`, and `InvalidRequest`."""
        found = self.find(name, principal, request)
        if isinstance(found, Distant):
            raise InvalidRequest(
                f"The model {found.agent.name!r} is on another server: chat and completions "
                "reach it, this endpoint does not.",
                param="model",
            )
        return found

    def find(
        self,
        name: str | None,
        principal: Principal = ANYBODY,
        request: GenerationSpec | None = None,
    ) -> Target:
        """Return what `name` leads to (None: the first served), within the limits of `principal`.

        `request`: whose conversation decides between several targets of an alias. Raises
        `ModelNotFound` with the nearest name that it may use, and `ModelNotAllowed`.
        """
        routes = self.routes
        found: Target | None = self.default if name is None else self._by_name.get(name)
        if found is None and name is not None:
            if (alias := routes.aliases.get(name)) is not None:
                return self._behind(routes, alias, principal, request)
            found = routes.remotes.get(name)
        if found is None:
            raise ModelNotFound(_advice(str(name), self._names(principal)), param="model")
        principal.require_model(found.agent.names, name or found.agent.name)
        return _limited(found, principal)

    def named(self, name: str, routes: Routes | None = None) -> Target:
        """Return what a name that is known to be there leads to, without any limits."""
        found = self._by_name.get(name)
        return (routes or self.routes).remotes[name] if found is None else found

    def stand_ins(self, served: Served) -> list[Host]:
        """Return the hosts that answer for a model, in their order."""
        routes = self.routes
        found = [self.named(name, routes) for name in routes.fallbacks.get(served.agent.name, ())]
        return [one.host for one in found if isinstance(one, Served)]

    def usable(self, principal: Principal) -> list[Served]:
        """Return what `principal` may use, within its limits."""
        return [
            _limited(one, principal) for one in self.served if principal.may_use(one.agent.names)
        ]

    def remotes(self, principal: Principal) -> list[Distant]:
        """Return the remotes that `principal` may use, within its limits."""
        found = self.routes.remotes.values()
        return [_limited(one, principal) for one in found if principal.may_use(one.agent.names)]

    def aliases(self, principal: Principal) -> list[tuple[Alias, list[Target]]]:
        """Return the aliases that `principal` may use, each with what it may get by them."""
        routes = self.routes
        found = [(one, self._targets(routes, one, principal)) for one in routes.aliases.values()]
        return [
            (alias, [_limited(self.named(name, routes), principal) for name in names])
            for alias, names in found
            if names
        ]

    def _behind(
        self, routes: Routes, alias: Alias, principal: Principal, request: GenerationSpec | None
    ) -> Target:
        conversation = b"" if request is None else conversation_of(request)
        chosen = alias.choose(self._targets(routes, alias, principal), conversation)
        if chosen is None:
            raise principal.refused(alias.name)
        return _limited(self.named(chosen, routes), principal)

    def _targets(self, routes: Routes, alias: Alias, principal: Principal) -> list[str]:
        """Return the targets with a weight that `principal` may use.

        Who may use the alias by its name may use what it stands for, by that name.
        """
        granted = principal.may_use((alias.name,))
        names = [name for name, weight in alias.targets if weight]
        return [
            name
            for name in names
            if granted or principal.may_use(self.named(name, routes).agent.names)
        ]

    def _names(self, principal: Principal) -> list[str]:
        """Return every name that `principal` may ask for."""
        usable: list[Target] = [*self.usable(principal), *self.remotes(principal)]
        names = [name for one in usable for name in one.agent.names]
        return names + [alias.name for alias, _ in self.aliases(principal)]


AnyTarget = TypeVar("AnyTarget", Served, Distant, Target)


def _limited(target: AnyTarget, principal: Principal) -> AnyTarget:
    return replace(target, agent=target.agent.limited(principal.limits))


def _advice(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"The model {name[:200]!r} does not exist here; did you mean {near[0]!r}?"
    listed = ", ".join(map(repr, names[:_MOST_LISTED])) or "none that this API key may use"
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return (
        f"The model {name[:200]!r} does not exist here; this server serves {listed}{more} "
        "(GET /v1/models has them all)."
    )
