"""Which served model a request means."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.core.errors import ModelNotFound
from server.gateway.agent import Agent
from server.gateway.host import Host
from server.gateway.principal import ANYBODY, Principal
from server.gateway.prompter import Prompter

_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Served:
    """A name's agent, the weights behind it, and how its prompts are written."""

    agent: Agent
    host: Host
    prompter: Prompter
    """Bound whenever the host is loaded. Agents with a template of their own have their own one."""


class ModelRouter:
    """Looks names up. The first one configured is what a request without a name gets."""

    def __init__(self, served: Sequence[Served]) -> None:
        """At least one. Raises `ValueError` when two have a name in common."""
        self.served = tuple(served)
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

    def pick(self, name: str | None, principal: Principal = ANYBODY) -> Served:
        """Return what is served under `name` (None: the first), within the limits of `principal`.

        Raises `ModelNotFound` with the nearest name that it may use, and `ModelNotAllowed`.
        """
        served = self._find(name, principal)
        principal.require_model(served.agent.names, name or served.agent.name)
        return _limited(served, principal)

    def usable(self, principal: Principal) -> list[Served]:
        """Return what `principal` may use, within its limits."""
        return [
            _limited(one, principal) for one in self.served if principal.may_use(one.agent.names)
        ]

    def _find(self, name: str | None, principal: Principal) -> Served:
        if name is None:
            return self.default
        found = self._by_name.get(name)
        if found is None:
            usable = self.usable(principal)
            names = [name for one in usable for name in one.agent.names]
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
