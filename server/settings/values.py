"""Types that several sections share: what a setting may be, with words for what it may not."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

KvType = Literal["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "f32", "bf16"]
AutoKvType = Literal["auto", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "f32", "bf16"]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
ModelName = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """What all sections share: no unknown keys, no coercion, no later change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )


def whole_as_float(value: object) -> object:
    """Let a whole number stand for a float, which strict mode refuses."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


class _Whole:
    """Checks a whole number within bounds, or one of some words."""

    def __init__(self, *words: str, least: int, most: int | None = None, unit: str = "") -> None:
        self._words = words
        self._least = least
        self._most = most
        self._form = f"must be {', '.join(words)} or a {unit or 'whole number'}, {least} or more"

    def __call__(self, value: object) -> object:
        """Return the word or number. Text is taken too: variables and flags are text."""
        if value in self._words:
            return value
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(self._form)  # noqa: TRY004 - pydantic makes messages of ValueErrors
        if value < self._least:
            raise ValueError(self._form)
        if self._most is not None and value > self._most:
            raise ValueError(f"must be at most {self._most}")
        return value


Auto = Literal["auto"]
GpuLayers = Annotated[
    int | Literal["auto", "all"],
    BeforeValidator(_Whole("auto", "all", least=0, unit="number of layers")),
]
CpuExperts = Annotated[
    int | Auto, BeforeValidator(_Whole("auto", least=0, unit="number of layers"))
]
Slots = Annotated[int | Auto, BeforeValidator(_Whole("auto", least=1, most=256))]
ContextLength = Annotated[int | Auto, BeforeValidator(_Whole("auto", least=16))]
Cells = Annotated[int | Auto, BeforeValidator(_Whole("auto", least=1))]


def _origins(value: object) -> object:
    """Take a list, or text with commas: variables are text. Scheme and host, nothing after them."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(
        isinstance(one, str) and (one == "*" or _ORIGIN.fullmatch(one)) for one in value
    ):
        raise ValueError("must be a list of origins such as https://chat.example.com, or of *")
    return tuple(value)


def _host_names(value: object) -> object:
    """Take a list, or text with commas; no ports."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(
        isinstance(one, str) and _HOST.fullmatch(one) for one in value
    ):
        raise ValueError(
            "must be a list of names such as gpu-box or gpu.example.com, without ports"
        )
    return tuple(one.lower().rstrip(".") for one in value)


_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
HostNames = Annotated[tuple[str, ...], BeforeValidator(_host_names)]
"""Names of this server."""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#,@*]+")
Origins = Annotated[tuple[str, ...], BeforeValidator(_origins)]
"""Web pages' origins: scheme, host and port."""
Factor = Annotated[PositiveFloat, BeforeValidator(whole_as_float)]
