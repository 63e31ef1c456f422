"""What all request bodies have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from server.api.errors import field_path


class ApiModel(BaseModel):
    """Strict types; unknown fields are kept, so that they can be named."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    def unknown(self, prefix: str = "") -> list[str]:
        """Paths of the fields that no schema knows; null is as good as absent."""
        extra = self.__pydantic_extra__ or {}
        return [prefix + name for name, value in extra.items() if value is not None]


def others(value: Any, known: Collection[str], *place: int | str) -> Iterator[str]:
    """Yield the paths of the keys of `value` that are not known; none where it is no object."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in known and inner is not None:
                yield field_path((*place, key))
