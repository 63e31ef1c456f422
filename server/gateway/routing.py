"""Which served model a request means."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.core.errors import ModelNotFound
from server.gateway.agent import Agent
from server.gateway.aliases import Alias, conversation_of
from server.gateway.host import Host
from server.gateway.principal import ANYBODY, Principal
from server.gateway.prompter import Prompter
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
        """Return what is served under `name` (None: the first), within the limits of `principal`.

        `request`: whose conversation decides between several targets of an alias. Raises
        `ModelNotFound` with the nearest name that it may use, and `ModelNotAllowed`.
        """
        if name is None:
            served = self.default
        elif (alias := self.routes.aliases.get(name)) is not None:
            return self._behind(alias, principal, request)
        else:
            served = self._find(name, principal)
        principal.require_model(served.agent.names, name or served.agent.name)
        return _limited(served, principal)

    def named(self, name: str) -> Served:
        """Return what is served under a name that is known to be, without any limits."""
        return self._by_name[name]

    def stand_ins(self, served: Served) -> list[Host]:
        """Return the hosts of those that answer for a model, in their order."""
        names = self.routes.fallbacks.get(served.agent.name, ())
        return [self._by_name[name].host for name in names]

    def usable(self, principal: Principal) -> list[Served]:
        """Return what `principal` may use, within its limits."""
        return [
            _limited(one, principal) for one in self.served if principal.may_use(one.agent.names)
        ]

    def aliases(self, principal: Principal) -> list[tuple[Alias, list[Served]]]:
        """Return the aliases that `principal` may use, each with what it may get by them."""
        found = [(alias, self._targets(alias, principal)) for alias in self.routes.aliases.values()]
        return [
            (alias, [_limited(self._by_name[name], principal) for name in names])
            for alias, names in found
            if names
        ]

    def _behind(self, alias: Alias, principal: Principal, request: GenerationSpec | None) -> Served:
        conversation = b"" if request is None else conversation_of(request)
        chosen = alias.choose(self._targets(alias, principal), conversation)
        if chosen is None:
            raise principal.refused(alias.name)
        return _limited(self._by_name[chosen], principal)

    def _targets(self, alias: Alias, principal: Principal) -> list[str]:
        """Return the targets that `principal` may use.

        Who may use the alias by its name may use what it stands for, by that name.
        """
        granted = principal.may_use((alias.name,))
        names = [name for name, _ in alias.targets]
        return [
            name for name in names if granted or principal.may_use(self._by_name[name].agent.names)
        ]

    def _find(self, name: str, principal: Principal) -> Served:
        found = self._by_name.get(name)
        if found is None:
            names = [name for one in self.usable(principal) for name in one.agent.names]
            names += [alias.name for alias, _ in self.aliases(principal)]
            raise ModelNotFound(_advice(name, names), param="model")
        return found


def _limited(served: Served, principal: Principal) -> Served:
    return replace(served, agent=served.agent.limited(principal.limits))


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
