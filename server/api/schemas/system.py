"""The endpoints that llama-server has: tokens, templates, loading and unloading."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.api.schemas.base import ApiModel


class TokenizeRequest(ApiModel):
    """The body of `POST /tokenize`."""

    content: str
    model: str | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(ApiModel):
    """The body of `POST /detokenize`."""

    tokens: list[Annotated[int, Field(ge=0, le=2**31 - 1)]]
    model: str | None = None


class ModelRequest(ApiModel):
    """The body of `POST /models/load` and `/models/unload`."""

    model: str
