"""Who a request comes from, and what that one may do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from server.core.errors import AdminRequired, ModelNotAllowed
from server.store.keys import KeyLimits


@dataclass(frozen=True, slots=True)
class Principal:
    """The key behind a request, or nobody in particular on a server without keys."""

    key_id: str = ""
    """Public; empty for nobody in particular."""
    name: str = ""
    limits: KeyLimits = field(default_factory=KeyLimits)
    admin: bool = False

    @property
    def anonymous(self) -> bool:
        """Whether it has no key, because the server has none."""
        return not self.key_id

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether it may use a model that is served under any of `names`."""
        allowed = self.limits.models
        return allowed is None or any(name in allowed for name in names)

    def require_model(self, names: Iterable[str], asked: str) -> None:
        """Raise `ModelNotAllowed` unless it may use the model, which was `asked` for."""
        if not self.may_use(names):
            raise self.refused(asked)

    def refused(self, asked: str) -> ModelNotAllowed:
        """Return the error for a model that it may not use."""
        return ModelNotAllowed(
            f"This API key may not use the model {asked[:200]!r}; it is limited to "
            f"{', '.join(map(repr, self.limits.models or ()))}.",
            param="model",
        )

    def require_admin(self) -> None:
        """Raise `AdminRequired` unless it may change the server."""
        if not self.admin:
            raise AdminRequired(
                "Only an admin key may do this. `onegpu keys create NAME --admin` makes one."
                if self.key_id
                else "Without API keys only this machine itself may do this. "
                "`onegpu keys create NAME --admin` makes a key for it."
            )


ANYBODY = Principal()
"""Nobody in particular."""
