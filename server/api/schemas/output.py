"""What an answer must look like: OpenAI's `response_format`, vLLM's `guided_*`, llama-server's names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field

from server.api.errors import field_path
from server.api.schemas.base import ApiModel
from server.core.errors import InvalidRequest
from server.gateway.spec import OutputForm

MOST_CHOICES = 1000
_LONGEST_JSON = 256 * 1024
"""Characters of a schema that comes as text: it is read between others' tokens."""
JsonObject = dict[str, Any]


class SchemaFormat(ApiModel):
    """The schema of a `response_format`, with its name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[JsonObject, Field(alias="schema")]
    strict: bool | None = None
    """Enforced either way."""


class ResponseFormat(ApiModel):
    """OpenAI's way to say it; `schema` beside `json_object` is llama-server's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None

    def unused(self, place: str) -> list[str]:
        """Paths of what is said without effect."""
        names = self.unknown(f"{place}.")
        if self.json_schema is not None:
            if self.type == "json_schema":
                names += self.json_schema.unknown(f"{place}.json_schema.")
            else:
                names.append(f"{place}.json_schema")
        if self.schema_ is not None and self.type != "json_object":
            names.append(f"{place}.schema")
        return names

    def form(self) -> OutputForm | None:
        """Return it; None for text. Raises `InvalidRequest`."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            if self.schema_ is None:
                return OutputForm("json_object", None, "response_format")
            return OutputForm("json_schema", self.schema_, "response_format.schema")
        if self.json_schema is None:
            raise InvalidRequest(
                'A "json_schema" format needs \'json_schema\': {"name": …, "schema": …}.',
                param="response_format.json_schema",
            )
        place = "response_format.json_schema.schema"
        return OutputForm("json_schema", self.json_schema.schema_, place)


class OutputFields(ApiModel):
    """The fields of which at most one says it."""

    response_format: ResponseFormat | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: Any = None
    guided_grammar: str | None = None
    json_schema: Any = None
    grammar: str | None = None

    def output(self) -> OutputForm | None:
        """Return what was asked for; None for any text. Raises `InvalidRequest`, for a second one too."""
        return self._output

    @cached_property
    def _output(self) -> OutputForm | None:
        found = None if self.response_format is None else self.response_format.form()
        for name, read in _READERS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if found is not None:
                raise InvalidRequest(
                    f"{name!r} and {top(found.param)!r} both say what the answer looks like; "
                    "send one.",
                    param=name,
                )
            found = read(value, name)
        return found


def top(param: str) -> str:
    """Return the field of the body that a path is in."""
    return param.partition(".")[0].partition("[")[0]


def _schema(value: Any, name: str) -> OutputForm:
    """A JSON Schema as an object, or as its text."""
    if isinstance(value, str):
        if len(value) > _LONGEST_JSON:
            raise InvalidRequest(
                f"{name!r} has {len(value)} characters, and {_LONGEST_JSON} are the most.",
                param=name,
            )
        try:
            value = json.loads(value, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{name!r} is not valid JSON: {error}.", param=name) from error
    if not isinstance(value, Mapping):
        raise InvalidRequest(
            f"{name!r} must be a JSON Schema: an object, or its text as JSON.", param=name
        )
    return OutputForm("json_schema", value, name)


def _no_number(text: str) -> NoReturn:
    message = f"{text} is not a number of JSON"
    raise ValueError(message)


def _choice(value: Any, name: str) -> OutputForm:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_CHOICES:
        raise InvalidRequest(f"{name!r} must be a list of 1 to {MOST_CHOICES} texts.", param=name)
    for number, text in enumerate(value):
        if not isinstance(text, str) or not text:
            raise InvalidRequest(
                "A choice must be a non-empty text.", param=field_path((name, number))
            )
    return OutputForm("choice", value, name)


def _regex(value: str, name: str) -> OutputForm:
    return OutputForm("regex", _text(value, name), name)


def _grammar(value: str, name: str) -> OutputForm:
    """Lark, or GBNF, which writes its rules with `::=`."""
    return OutputForm("gbnf" if "::=" in value else "lark", _text(value, name), name)


def _gbnf(value: str, name: str) -> OutputForm:
    return OutputForm("gbnf", _text(value, name), name)


def _text(value: str, name: str) -> str:
    if not value.strip():
        raise InvalidRequest(f"{name!r} is empty; leave it out for any text.", param=name)
    return value


_READERS: Mapping[str, Callable[[Any, str], OutputForm]] = {
    "guided_json": _schema,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "json_schema": _schema,
    "grammar": _gbnf,
}
