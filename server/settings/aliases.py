"""Names that stand for others, as the configuration writes them."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BeforeValidator

_FORM = "must be a name, or names with weights such as {qwen2:7b: 90, qwen3:32b: 10}"


def _aliases(value: object) -> object:
    """Give every alias its targets with weights. Raises `ValueError` that names the alias."""
    if not isinstance(value, dict):
        raise ValueError("must be lines of NAME: MODEL")  # noqa: TRY004 - pydantic's way
    return {name: _targets(str(name), given) for name, given in value.items()}


def _targets(alias: str, given: object) -> dict[str, float]:
    if not alias:
        raise ValueError("an alias must not be empty")
    if isinstance(given, str) and given:
        return {given: 1.0}
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{alias}: {_FORM}")
    for name, weight in given.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not name or not number or not 0 <= weight < math.inf:
            raise ValueError(f"{alias}: the weight of {name} must be a number, 0 or more")
    if not (total := sum(given.values())):
        raise ValueError(f"{alias}: at least one weight must be more than 0")
    if not math.isfinite(total):
        raise ValueError(f"{alias}: the sum of the weights is too large")
    return {str(name): float(weight) for name, weight in given.items()}


Aliases = Annotated[dict[str, dict[str, float]], BeforeValidator(_aliases)]
"""Alias → served names with their weights."""
