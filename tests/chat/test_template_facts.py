"""Published templates render as transformers renders them: compared with facts, not with texts."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from server.chat.template import ChatTemplate
from server.core.errors import InvalidRequest
from tests.chat.published import published_template
from tests.fakes import FakeTokenizer

GIVEN = json.loads(Path("tests/chat/template_conversations.json").read_text(encoding="utf-8"))
FACTS = json.loads(Path("tests/chat/template_facts.json").read_text(encoding="utf-8"))
CONVERSATIONS: dict[str, Any] = GIVEN["conversations"]


def now() -> datetime:
    return datetime.fromisoformat(GIVEN["now"])


@pytest.mark.parametrize("name", FACTS["templates"])
def test_a_published_template_renders_as_with_transformers(name):
    facts = FACTS["templates"][name]
    source = published_template(name)
    assert hashlib.sha256(source.encode()).hexdigest() == facts["sha256"], "another template"
    tokenizer = FakeTokenizer()
    tokenizer.bos_text, tokenizer.eos_text = GIVEN["bos_token"], GIVEN["eos_token"]
    template = ChatTemplate(source, tokenizer, now)

    found = {id_: outcome(template, conversation) for id_, conversation in CONVERSATIONS.items()}

    # What is left out may be refused before the template refuses the rest.
    wanted = facts["rendered"]
    same = {"error": {"error", "left out"}}
    wrong = {id_ for id_, what in found.items() if what not in same.get(wanted[id_], {wanted[id_]})}
    assert wrong == set()


def outcome(template: ChatTemplate, conversation: dict[str, Any]) -> str:
    tools = GIVEN["tools"] if conversation.get("tools") else None
    try:
        text = template.render(conversation["messages"], tools, conversation.get("kwargs"))
    except InvalidRequest as error:
        return "left out" if "has no place for" in error.message else "error"
    return f"{len(text)} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
