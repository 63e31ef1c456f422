"""Published templates render as transformers renders them: compared with facts, not with texts."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from server.chat.calls import find_form
from server.chat.forms.functions import FunctionsForm
from server.chat.forms.hermes import HermesForm
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


def documented() -> dict[str, list[str]]:
    """Template to what docs/models.md says that it can do."""
    table = Path("docs/models.md").read_text(encoding="utf-8").split("## Chat templates")[1]
    rows = re.findall(r"^\| (.*) \|$", table.split("\n## ")[0], re.MULTILINE)
    cells = [row.split(" | ") for row in rows[1:]]
    return {name: rest for names, *rest in cells for name in names.split(", ")}


def test_the_table_of_templates_is_that_of_the_facts():
    assert sorted(documented()) == sorted(FACTS["templates"])


@pytest.mark.parametrize("name", FACTS["templates"])
def test_a_published_template_can_do_what_the_documentation_says(name):
    template = ChatTemplate(published_template(name), FakeTokenizer())
    can = template.abilities
    form = {HermesForm: "`<tool_call>`", FunctionsForm: "`<function=…>`"}
    several = "yes" if can.calls_together else "one at a time"
    assert documented()[name] == [
        "yes" if can.tools else "no",
        form.get(type(find_form(template.source)), "no"),
        several if can.calls else "no",
        "yes" if template.thinks else "no",
    ]
