"""Which served model a request means."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from server.core.errors import ModelNotFound
from server.gateway.agent import Agent
from server.gateway.host import Host
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

    def pick(self, name: str | None) -> Served:
        """Return what is served under `name`. Raises `ModelNotFound` with the nearest name."""
        if name is None:
            return self.default
        found = self._by_name.get(name)
        if found is None:
            raise ModelNotFound(self._advice(name), param="model")
        return found

    def _advice(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._by_name, n=1, cutoff=0.6)
        if near:
            return f"The model {name[:200]!r} does not exist here; did you mean {near[0]!r}?"
        names = self.names
        listed = ", ".join(map(repr, names[:_MOST_LISTED]))
        more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
        return (
            f"The model {name[:200]!r} does not exist here; this server serves {listed}{more} "
            "(GET /v1/models has them all)."
        )
