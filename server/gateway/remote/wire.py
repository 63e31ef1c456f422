"""What remotes may say, checked field by field: anything else is garbage and ends the request."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

_FINISH = frozenset({"stop", "length", "tool_calls", "content_filter"})
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
_NOT_PASSED = ("function_call", "audio")
"""What would be lost: clients ask for it by fields that are unknown here."""
_NO_TEXT = frozenset({"id", "index", "type"})
_MOST_CALLS = 128
_MOST_TOKENS = 2**31


class Garbage(Exception):
    """Nothing that the API knows; the message says what."""


@dataclass(frozen=True, slots=True)
class RemoteDelta:
    """A part of one choice: `fields` of a chat's delta, or `text` of a completion."""

    fields: Mapping[str, Any]
    logprobs: Mapping[str, Any] | None = None

    @property
    def size(self) -> int:
        """Bytes of what the model wrote."""
        return _size(self.fields)


@dataclass(frozen=True, slots=True)
class RemoteEnd:
    """The end of one choice."""

    reason: str


RemoteEvent = RemoteDelta | RemoteEnd
RemoteBatch = list[tuple[int, RemoteEvent]]
"""Events with the number of the choice they belong to, in order."""


@dataclass(frozen=True, slots=True)
class RemoteUsage:
    """Token counts as the remote tells them."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0


@dataclass(slots=True)
class _Choice:
    calls: dict[int, int] = field(default_factory=dict)
    """The remote's number of a tool call → ours."""
    ended: bool = False


class RemoteReader:
    """Turns documents to events; knows which choices have ended."""

    def __init__(self, choices: int, *, chat: bool) -> None:
        """`choices`: how many there must be."""
        self.usage: RemoteUsage | None = None
        self._chat = chat
        self._choices = [_Choice() for _ in range(choices)]

    @property
    def complete(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.ended for choice in self._choices)

    def chunk(self, data: str) -> RemoteBatch:
        """Read one event of a stream. Raises `Garbage`."""
        document = parse(data)
        self._take_usage(document)
        batch: RemoteBatch = []
        for number, given in self._listed(document):
            choice = self._choices[number]
            fields = self._fields(given, choice)
            if fields and choice.ended:
                raise Garbage("text after the end of a choice")
            logprobs = _logprobs(given)
            if logprobs and not fields:
                fields = {"content" if self._chat else "text": ""}  # part of a character, say
            for one in _parts(fields):
                batch.append((number, RemoteDelta(one, logprobs)))
                logprobs = None
            if (reason := _reason(given)) is not None:
                choice.ended = True
                batch.append((number, RemoteEnd(reason)))
        return batch

    def _listed(self, document: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
        choices = document.get("choices")
        if not isinstance(choices, list):
            raise Garbage("no list of choices")
        found: list[tuple[int, Mapping[str, Any]]] = []
        for choice in choices:
            index = choice.get("index") if isinstance(choice, dict) else None
            if not _is_number(index) or not 0 <= index < len(self._choices):
                raise Garbage("a choice with a number that was not asked for")
            found.append((index, choice))
        return found

    def _fields(self, given: Mapping[str, Any], choice: _Choice) -> dict[str, Any]:
        """Return what is there for a choice; empty where that is nothing."""
        if not self._chat:
            text = given.get("text")
            if not isinstance(text, str):
                raise Garbage("a choice without text")
            return {"text": text} if text else {}
        delta = given.get("delta")
        if not isinstance(delta, dict):
            raise Garbage("a choice without a delta")
        fields: dict[str, Any] = {}
        for key in _NOT_PASSED:
            if delta.get(key) is not None:
                raise Garbage(f"{key}, which is not passed on")
        for key in _TEXTS:
            text = delta.get(key)
            if text is not None and not isinstance(text, str):
                raise Garbage(f"{key} that is no text")
            if text:
                fields[key] = text
        if calls := _calls(delta.get("tool_calls"), choice):
            fields["tool_calls"] = calls
        return fields

    def _take_usage(self, document: Mapping[str, Any]) -> None:
        usage = document.get("usage")
        if usage is None:
            return
        if not isinstance(usage, dict):
            raise Garbage("usage that is no object")
        inner = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
        self.usage = RemoteUsage(
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens", 0)),
            _detail(inner[0], "cached_tokens"),
            _detail(inner[1], "reasoning_tokens"),
        )


def parse(data: str) -> dict[str, Any]:
    """Return a JSON object. Raises `Garbage`, also for an error that is told in its place."""
    try:
        document = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise Garbage("no JSON") from None  # what it is may repeat the key
    if not isinstance(document, dict):
        raise Garbage("JSON that is no object")
    if document.get("error") is not None:
        raise Garbage("an error in place of an answer")
    return document


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _finite(text: str) -> float:
    """Refuse what is too large for a float: as infinity, it could not be written as JSON again."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        return sum(_size(one) for key, one in value.items() if key not in _NO_TEXT)
    return sum(map(_size, value)) if isinstance(value, list) else 0


def _is_number(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(value: Any) -> int:
    if not _is_number(value) or not 0 <= value < _MOST_TOKENS:
        raise Garbage("usage that is no count")
    return value


def _detail(details: Any, name: str) -> int:
    value = details.get(name) if isinstance(details, dict) else None
    return 0 if value is None else _count(value)


def _reason(choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    if reason is None:
        return None
    if not isinstance(reason, str) or reason not in _FINISH:
        raise Garbage("an unknown finish_reason")
    return reason


def _logprobs(choice: Mapping[str, Any]) -> Mapping[str, Any] | None:
    logprobs = choice.get("logprobs")
    if logprobs is not None and not isinstance(logprobs, dict):
        raise Garbage("logprobs that are no object")
    return logprobs


def _calls(given: Any, choice: _Choice) -> list[dict[str, Any]]:
    """Return tool calls in the API's form; numbers count calls, and each call begins with its name."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise Garbage("tool_calls that are no list")
    calls: list[dict[str, Any]] = []
    for call in given:
        function = call.get("function") if isinstance(call, dict) else None
        theirs = call.get("index") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not _is_number(theirs):
            raise Garbage("a tool call without a function or a number")
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):
            raise Garbage("arguments that are no text")
        if theirs not in choice.calls:
            calls.append(_first(call, function, choice, theirs))
        number = choice.calls[theirs]
        if arguments:
            calls.append({"index": number, "function": {"arguments": arguments}})
    return calls


def _first(
    call: Mapping[str, Any], function: Mapping[str, Any], choice: _Choice, theirs: int
) -> dict[str, Any]:
    name, own = function.get("name"), call.get("id")
    if not isinstance(name, str) or not name or len(choice.calls) >= _MOST_CALLS:
        raise Garbage("a tool call without a name, or too many")
    number = choice.calls[theirs] = len(choice.calls)
    return {
        "index": number,
        "id": own if isinstance(own, str) and own else f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": ""},
    }


def _parts(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Split so that a call's first delta has no arguments, as clients know it."""
    calls = fields.get("tool_calls")
    if calls is None:
        return [fields] if fields else []
    rest = {key: value for key, value in fields.items() if key != "tool_calls"}
    return [*([rest] if rest else []), *({"tool_calls": [call]} for call in calls)]
