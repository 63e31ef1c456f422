"""Messages: to what templates know, in an order that means something."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from server.api.errors import field_path
from server.api.schemas.base import others
from server.core.errors import InvalidRequest

_CALL = ("id", "type", "function", "index")
_FUNCTION = ("name", "arguments", "parsed_arguments")
_COPIES = frozenset({"annotations", "index", "parsed", "parsed_arguments"})
"""What SDKs send back of an answer beside what it says; templates are not shown it."""

Place = tuple[int | str, ...]


@with_config(ConfigDict(extra="allow", strict=True))
class ChatMessage(TypedDict):
    """One message. Other fields are left to the model's template."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: NotRequired[Any]
    name: NotRequired[str | None]
    tool_calls: NotRequired[list[dict[str, Any]] | None]
    tool_call_id: NotRequired[str | None]
    reasoning_content: NotRequired[str | None]
    reasoning: NotRequired[str | None]
    refusal: NotRequired[str | None]


_MESSAGE = frozenset(ChatMessage.__annotations__) | {"annotations", "parsed"}


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Reduce messages to plain content, no nulls, no developer. Raises `InvalidRequest`.

    Every call of a tool must have one result, right after the message that makes it.
    """
    plain: list[dict[str, Any]] = []
    calls = _OpenCalls()
    for number, message in enumerate(messages):
        one = _message(number, message)
        if one["role"] == "tool":
            calls.close(number, one)
        else:
            calls.check()
            calls.open(number, one.get("tool_calls", ()))
        plain.append(one)
    calls.check()
    return plain


def part_others(messages: Sequence[ChatMessage]) -> Iterator[str]:
    """Yield the paths of what parts of the content say without effect."""
    for number, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            for index, part in enumerate(content):
                known = ("type", "text", "refusal")
                yield from others(part, known, "messages", number, "content", index)


def message_others(messages: Sequence[ChatMessage]) -> Iterator[str]:
    """Yield the paths of what messages and their calls have beyond OpenAI's keys.

    Only the template sees it.
    """
    for number, message in enumerate(messages):
        yield from others(message, _MESSAGE, "messages", number)
        for place, call in enumerate(message.get("tool_calls") or ()):
            path = ("messages", number, "tool_calls", place)
            yield from others(call, _CALL, *path)
            yield from others(call.get("function"), _FUNCTION, *path, "function")


class _OpenCalls:
    """Calls of the last assistant message that have no result yet."""

    def __init__(self) -> None:
        self._message = 0
        self._open: dict[object, int] = {}
        """Id, or the place again where a call has none → place."""
        self._closed: set[object] = set()

    def open(self, number: int, calls: Sequence[Mapping[str, Any]]) -> None:
        """Note the calls of message `number`. Raises `InvalidRequest` for an id that is there twice."""
        self._message = number
        self._open, self._closed = {}, set()
        for place, call in enumerate(calls):
            key = call.get("id", place)
            if key in self._open:
                raise InvalidRequest(
                    f"Two calls have the id {str(key)[:70]!r}.", param=self._path(place)
                )
            self._open[key] = place

    def close(self, number: int, result: dict[str, Any]) -> None:
        """Note the tool message `number`; one without an id gets that of the only call it can be for."""
        param = field_path(("messages", number, "tool_call_id"))
        key = result.get("tool_call_id")
        if not self._open and not self._closed:
            raise InvalidRequest(
                "A tool message must follow the assistant message whose call it answers.",
                param=param,
            )
        if key is None:
            if len(self._open) != 1:
                raise InvalidRequest(
                    "The tool message needs the 'tool_call_id' of the call that it answers.",
                    param=param,
                )
            key = next(iter(self._open))
            if isinstance(key, str):
                result["tool_call_id"] = key
        if key not in self._open:
            told = "has its result already" if key in self._closed else "was not made just before"
            raise InvalidRequest(f"The call {str(key)[:70]!r} {told}.", param=param)
        del self._open[key]
        self._closed.add(key)

    def check(self) -> None:
        """Raise `InvalidRequest` if a call has no result, where no further one may follow."""
        if self._open:
            raise InvalidRequest(
                "An assistant message with calls must be followed by a tool message for each of "
                "them; this call has none.",
                param=self._path(next(iter(self._open.values()))),
            )

    def _path(self, place: int) -> str:
        return field_path(("messages", self._message, "tool_calls", place, "id"))


def _message(number: int, message: ChatMessage) -> dict[str, Any]:
    plain = _said(message)
    role = plain["role"]
    _refuse_legacy(number, plain)
    if role == "developer":
        plain["role"] = "system"
    plain["content"] = _content(number, message) + plain.pop("refusal", "")
    if "reasoning" in plain:
        plain.setdefault("reasoning_content", plain.pop("reasoning"))
    if "tool_calls" in plain:
        if role != "assistant" and plain["tool_calls"]:
            raise InvalidRequest(
                f"Only assistant messages make calls, not {role} messages.",
                param=field_path(("messages", number, "tool_calls")),
            )
        plain["tool_calls"] = [
            _call(call, ("messages", number, "tool_calls", place))
            for place, call in enumerate(plain["tool_calls"])
        ]
    return plain


def _refuse_legacy(number: int, message: Mapping[str, Any]) -> None:
    if message["role"] == "function":
        raise InvalidRequest(
            'The role "function" is not supported: use "tool", with \'tool_call_id\'.',
            param=field_path(("messages", number, "role")),
        )
    if "function_call" in message:
        raise InvalidRequest(
            "'function_call' is not supported: use 'tool_calls'.",
            param=field_path(("messages", number, "function_call")),
        )
    if "audio" in message:
        raise InvalidRequest(
            "Audio cannot be used: this model reads text only.",
            param=field_path(("messages", number, "audio")),
        )


def _call(call: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Return a call with its arguments as text: what a model wrote may be broken, and stays as it was."""
    plain = _said(call)
    if not isinstance(plain.get("id", ""), str):
        raise InvalidRequest("The id of a call must be text.", param=field_path((*place, "id")))
    if plain.get("type", "function") != "function":
        raise InvalidRequest(
            'The type of a call must be "function".', param=field_path((*place, "type"))
        )
    function = plain.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest("A tool call needs a function with a name.", param=field_path(place))
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif arguments is None or arguments == "":
        arguments = "{}"
    elif not isinstance(arguments, str):
        raise InvalidRequest(
            "Arguments must be a JSON object, or its text.",
            param=field_path((*place, "function", "arguments")),
        )
    return {**plain, "function": {**_said(function), "arguments": arguments}}


def _said(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None and key not in _COPIES}


def _content(number: int, message: ChatMessage) -> str:
    content = message.get("content")
    place: Place = ("messages", number, "content")
    if isinstance(content, str):
        return content
    if content is None:
        if message["role"] == "assistant":
            return ""
        raise InvalidRequest(
            f"The {message['role']} message needs content.", param=field_path(place)
        )
    if not isinstance(content, list):
        raise InvalidRequest(
            "Content must be a string or a list of parts.", param=field_path(place)
        )
    return "".join(_part((*place, index), part) for index, part in enumerate(content))


def _part(place: Place, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "refusal"):
        text = part.get(kind)
        if isinstance(text, str):
            return text
        raise InvalidRequest(
            f"The part needs {kind!r} as a string.", param=field_path((*place, kind))
        )
    if isinstance(kind, str):
        raise InvalidRequest(
            f"Parts of type {kind[:40]!r} cannot be used: this model reads text only.",
            param=field_path(place),
        )
    raise InvalidRequest("A content part must be an object with a 'type'.", param=field_path(place))
