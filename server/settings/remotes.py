"""Settings of remotes: models of other servers with the OpenAI API."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from server.gateway.remote.address import check_url
from server.settings.problems import KeyPath
from server.settings.quantities import Duration, Kind
from server.settings.relations import Conflict, Conflicts
from server.settings.values import PositiveInt, Section

_KEY = re.compile(r"[\x21-\x7e]+")
_NOT_TEXT = "\0"
Seconds = Annotated[Duration, Field(gt=0)]


def _url(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("must be an address such as https://api.example.com/v1")  # noqa: TRY004 - pydantic's way
    check_url(value)
    return value.rstrip("/")


def _hidden(value: object) -> object:
    """Keep what is no text out of messages, which show values."""
    return value if value is None or isinstance(value, str) else _NOT_TEXT


class RemoteSettings(Section):
    """A model on another server."""

    base_url: Annotated[str, BeforeValidator(_url)] = Field(
        description="where its API is, such as https://api.example.com/v1"
    )
    model: Annotated[str, Field(min_length=1)] = Field(description="what the model is called there")
    api_key: Annotated[str | None, BeforeValidator(_hidden), Kind("secret")] = Field(
        None, repr=False, description="key for it; never logged, never told"
    )
    api_key_env: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="variable that has the key, in place of api_key"
    )
    connect_timeout: Seconds = Field(5.0, description="longest time to reach it")
    read_timeout: Seconds = Field(
        60.0, description="its longest silence: to the first token, and between two"
    )
    connections: PositiveInt = Field(200, description="requests to it at a time; others wait")
    keepalive: Annotated[int, Field(ge=0)] = Field(
        100, description="connections that stay open between requests"
    )
    probe_every: Annotated[Seconds | None, Kind("duration")] = Field(
        30.0, description="pause between two looks at whether it is there; null: none"
    )
    failures: PositiveInt = Field(5, description="failures in a row after which it is not asked")
    pause: Seconds = Field(
        30.0, description="how long it is not asked then; doubles while tries fail, up to 5m"
    )
    n_ctx: PositiveInt | None = Field(
        None, description="its context in tokens, estimated at 4 bytes each; null: not checked here"
    )
    max_tokens: PositiveInt | None = Field(
        None, description="output limit of a request that names none; null: its own"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.api_key is not None and _KEY.fullmatch(self.api_key) is None:
            message = "must be text without spaces or control characters"
            raise Conflicts([Conflict(("api_key",), message)])
        return self


def fill_keys(
    values: Mapping[str, Any], environ: Mapping[str, str]
) -> Iterator[tuple[KeyPath, str]]:
    """Put keys of remotes where `api_key_env` names a variable; yields what is wrong and where."""
    remotes = values.get("remotes")
    for name, entry in remotes.items() if isinstance(remotes, dict) else ():
        variable = entry.get("api_key_env") if isinstance(entry, dict) else None
        if not isinstance(variable, str) or not variable:
            continue
        path = ("remotes", str(name), "api_key_env")
        if entry.get("api_key") is not None:
            yield path, "must be left out where api_key is given"
        elif not environ.get(variable):
            yield path, f"the variable {variable} is not set"
        else:
            entry["api_key"] = environ[variable]
