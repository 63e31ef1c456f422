"""Settings of fallback: who answers for a model that cannot, and when."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from server.settings.values import ModelName, Section

Reason = Literal["loading", "failed", "dead", "stalled", "gpu_memory", "remote", "queue_full"]


def _lists(value: object) -> object:
    """Take one name for a list of one. Raises `ValueError` that names the model."""
    if not isinstance(value, dict):
        raise ValueError("must be lines of MODEL: [TARGET, ...]")  # noqa: TRY004 - pydantic's way
    found = {}
    for name, given in value.items():
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list | tuple) or not all(
            isinstance(one, str) and one for one in names
        ):
            raise ValueError(f"{name}: must be a name or a list of names")
        found[name] = tuple(names)
    return found


def _reasons(value: object) -> object:
    """Take a list, or text with commas: variables are text."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of {', '.join(get_args(Reason))}")  # noqa: TRY004 - as above
    return tuple(value)


class FallbackSettings(Section):
    """Who answers for a model that cannot, before its first token."""

    model: ModelName | None = Field(
        None, description="who answers for any model without a list below; null: nobody"
    )
    models: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_lists)] = Field(
        default_factory=dict, description="who answers for one model: MODEL: [TARGET, …], in order"
    )
    when: Annotated[tuple[Reason, ...], BeforeValidator(_reasons)] = Field(
        ("loading", "failed", "dead", "stalled", "gpu_memory", "remote"),
        description="what a model must be for others to answer; queue_full is one more",
    )
