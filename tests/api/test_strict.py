"""Every field is honoured or refused in strict mode, and docs/api.md says which."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params as legacy
from openai.types.chat import completion_create_params as chat

from server.api.schemas.chat import ChatRequest
from server.api.schemas.completions import CompletionRequest
from server.api.schemas.output import OutputFields
from tests.api.asking import post
from tests.serving import Stack

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(
    r"\| `(?P<field>[^`]+)` \| (?P<where>both|chat|completions) \| `(?P<example>[^`]+)` "
    r"\| (?P<default>\w+) \| (?P<strict>\w+) \|[^|]*\|"
)
MODELS: dict[str, type[ChatRequest | CompletionRequest]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
}
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
GOOD: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "completions": {"prompt": "hi"},
}


def rows():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    section = text.split("### Every field, and strict mode\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    found = [ROW.fullmatch(line) for line in lines]
    assert all(found), [line for line, row in zip(lines, found, strict=True) if row is None]
    return [row for row in found if row is not None]


CASES = [
    (surface, row["field"], row["example"], mode, row[mode])
    for row in rows()
    for surface in MODELS
    if row["where"] in (surface, "both")
    for mode in ("default", "strict")
]


@pytest.mark.parametrize(("surface", "field", "example", "mode", "outcome"), CASES)
async def test_the_table_says_what_happens(stack, surface, field, example, mode, outcome):
    body = {**GOOD[surface], **json.loads(f"{{{example}}}")}
    strict = {"x-onegpu-strict": "true" if mode == "strict" else "false"}
    answer = await post(stack, PATHS[surface], body, **strict)
    if outcome == "refused":
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field
        assert not stack.engine.requests
        return
    assert answer.status_code == 200, answer.text
    ignored = answer.headers.get("x-ignored-fields")
    assert ignored == {"honoured": None, "accepted": None, "ignored": field}[outcome]


def test_strict_mode_ignores_nothing():
    assert {outcome for *_, mode, outcome in CASES if mode == "strict"} == {
        "honoured",
        "accepted",
        "refused",
    }


@pytest.mark.parametrize("surface", MODELS)
def test_the_table_has_every_field(surface):
    model = MODELS[surface]
    listed = {field for where, field, *_ in CASES if where == surface}
    top = {field for field in listed if field.isidentifier()} - {"x"}
    known = {field.alias or name for name, field in model.model_fields.items()}
    known |= model.LABELS | model.WITHOUT_EFFECT.keys() | model.REFUSED.keys()
    assert top == known


@pytest.mark.parametrize(("surface", "module"), [("chat", chat), ("completions", legacy)])
def test_the_table_has_every_field_of_the_official_client(surface, module):
    names = set(module.CompletionCreateParamsBase.__annotations__)
    names |= set(module.CompletionCreateParamsStreaming.__annotations__)
    assert len(names) > 15
    assert names <= {field for where, field, *_ in CASES if where == surface}


@pytest.mark.parametrize(
    ("given", "status"), [("true", 400), (" TRUE", 400), ("false", 200), ("False", 200)]
)
@pytest.mark.parametrize("setting", [False, True])
async def test_the_header_wins_over_the_setting(setting, given, status):
    stack = Stack().with_api(strict=setting)
    for path, body in (
        ("/v1/chat/completions", GOOD["chat"]),
        ("/v1/completions", GOOD["completions"]),
        ("/tokenize", {"content": "x"}),
        ("/detokenize", {"tokens": [65]}),
        ("/apply-template", GOOD["chat"]),
        ("/models/load", {"model": "fake-model"}),
    ):
        said = await post(stack, path, {**body, "wibble": 1}, **{"x-onegpu-strict": given})
        assert said.status_code == status, path
        unsaid = await post(stack, path, {**body, "wibble": 1})
        assert unsaid.status_code == (400 if setting else 200), path
        for answer in (said, unsaid):
            if answer.status_code == 200:
                assert answer.headers["x-ignored-fields"] == "wibble"
            else:
                assert answer.json()["error"]["param"] == "wibble"
    stack.service.shutdown()


@pytest.mark.parametrize("given", ["", "yes", "1", "true, false", "\x00true"])
async def test_another_header_is_refused(stack, given):
    answer = await post(stack, "/tokenize", {"content": "x"}, **{"x-onegpu-strict": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-onegpu-strict"


TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USER = {"role": "user", "content": "hi"}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "x"}
PART = {"type": "text", "text": "hi"}


def calling(call):
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}, RESULT]}


DEEP = [
    ({"messages": [{**USER, "wibble": 1}]}, "messages[0].wibble", False),
    ({"messages": [{"role": "user", "content": [PART, {**PART, "wibble": 1}]}]},
     "messages[0].content[1].wibble", True),
    (calling({**CALL, "wibble": 0}), "messages[1].tool_calls[0].wibble", False),
    (calling({**CALL, "function": {**CALL["function"], "wibble": 1}}),
     "messages[1].tool_calls[0].function.wibble", False),
    ({"tools": [TOOL, {"type": "function", "function": {"name": "g"}, "wibble": 1}]},
     "tools[1].wibble", False),
    ({"tools": [{"type": "function", "function": {"name": "f", "wibble": 1}}]},
     "tools[0].function.wibble", False),
    ({"stream": True, "stream_options": {"wibble": 1}}, "stream_options.wibble", True),
    ({"response_format": {"type": "text", "wibble": 1}}, "response_format.wibble", True),
    ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema", True),
    ({"response_format": {"type": "text", "json_schema": {"name": "x", "schema": {}}}},
     "response_format.json_schema", True),
    ({"tools": [TOOL], "tool_choice": {**TOOL, "wibble": 1}}, "tool_choice.wibble", True),
    ({"tools": [TOOL],
      "tool_choice": {"type": "function", "function": {"name": "f", "wibble": 1}}},
     "tool_choice.function.wibble", True),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "path", "told"), DEEP)
async def test_unknown_fields_are_found_at_every_level(stack, fields, path, told):
    body = {**GOOD["chat"], **fields}
    answer = await post(stack, PATHS["chat"], body, **{"x-onegpu-strict": "true"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == path
    request = ChatRequest.model_validate(body)
    # What goes to the model's template is not ignored.
    assert request.leftover(strict=False) == ([path] if told else [])


async def test_null_is_as_good_as_absent_in_strict_mode(stack):
    nothing = dict.fromkeys([*OutputFields.model_fields, "wibble", "store", "functions", "user"])
    body = {**nothing, "messages": [{**USER, "name": None, "wibble": None}]}
    answer = await post(stack, PATHS["chat"], body, **{"x-onegpu-strict": "true"})
    assert answer.status_code == 200, answer.text
