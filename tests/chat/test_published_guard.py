"""With published templates, too, the control tokens of a prompt are those that the template wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.chat.template import ChatTemplate
from server.core.errors import InvalidRequest
from tests.chat.published import published_template
from tests.fakes import MARKERS, FakeTokenizer

GIVEN = json.loads(Path("tests/chat/template_conversations.json").read_text(encoding="utf-8"))
FACTS = json.loads(Path("tests/chat/template_facts.json").read_text(encoding="utf-8"))
SPECIAL = re.compile(
    r"<\|[^<>|\s]+\|?>|<[^<>|\s]+\|>|<｜[^<>｜\s]+｜>|\[/?[A-Z_]{3,}\]|</?s>|<(?:start|end)_of_turn>|\]<\]"
)
OTHERS = (
    "<|im_start|>",
    "<|im_end|>",
    "[INST]",
    "<|eot_id|>",
    "<start_of_turn>",
    "<|end|>",
    "</s>",
)
CONVERSATIONS = ["system and turns", "call, answered", "calls", "thoughts, in a call", "documents"]
LEFT_ALONE = {"role", "type", "id", "tool_call_id", "required"}


@pytest.mark.parametrize("name", FACTS["templates"])
def test_control_tokens_are_the_templates_alone(name):
    source = published_template(name)
    control = sorted({*SPECIAL.findall(source), *OTHERS} - set(MARKERS))
    special = [*control, *MARKERS]
    ids = {text: 256 + place for place, text in enumerate(special)}
    tokenizer = FakeTokenizer(
        {text: ids[text] for text in control}, {text: ids[text] for text in MARKERS}
    )
    template = ChatTemplate(source, tokenizer)
    everything = "".join(f" {text}{text[:-1]}" for text in special) + special[0][:2]
    compared = 0
    for conversation in (GIVEN["conversations"][id_] for id_ in CONVERSATIONS):
        wanted = special_tokens(template, conversation, lambda text, _: text + " calm")
        found = special_tokens(
            template,
            conversation,
            lambda text, answers: text + ("".join(control) if answers else everything),
        )
        assert found == wanted
        compared += wanted is not None
    assert compared > 0 or refuses_all(FACTS["templates"][name])


def refuses_all(facts: dict[str, Any]) -> bool:
    return not any(facts["rendered"][id_][0].isdigit() for id_ in CONVERSATIONS)


def special_tokens(
    template: ChatTemplate, conversation: dict[str, Any], change: Callable[[str, bool], str]
) -> list[int] | None:
    """Those of the prompt when every text of the conversation was changed; None if it is refused."""
    messages = [
        {**changed(message, change), "content": change(message["content"], is_answer(message))}
        for message in conversation["messages"]
    ]
    tools = changed(GIVEN["tools"], change) if conversation.get("tools") else None
    kwargs = changed(conversation.get("kwargs", {}), change)
    try:
        tokens = template.encode(messages, tools, kwargs)
    except InvalidRequest:
        return None
    return [token for token in tokens if token >= 256]


def is_answer(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant"


def changed(value: Any, change: Callable[[str, bool], str], name: str = "") -> Any:
    if name == "arguments":
        return json.dumps(changed(json.loads(value), change), ensure_ascii=False)
    if isinstance(value, str):
        return value if name in LEFT_ALONE else change(value, False)
    if isinstance(value, list):
        return [changed(item, change, name if name in LEFT_ALONE else "") for item in value]
    if isinstance(value, dict):
        return {key: changed(item, change, key) for key, item in value.items()}
    return value
