"""The endpoints that llama-server has: tokens and templates."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.api.schemas.common import ApiModel


class TokenizeRequest(ApiModel):
    """The body of `POST /tokenize`."""

    content: str
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(ApiModel):
    """The body of `POST /detokenize`."""

    tokens: list[Annotated[int, Field(ge=0, le=2**31 - 1)]]
