"""Renders made-up conversations as transformers does, and keeps what came out as facts for the tests.

The published templates are other people's, and so are not kept here: a test that has them compares what
`server.chat` renders with lengths and hashes. Needs `pip install -e '.[templates]'`; the templates are
those that `make install-dev` put into .venv/share/chat-templates.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parent.parent
CONVERSATIONS = ROOT / "tests" / "chat" / "template_conversations.json"
FACTS = ROOT / "tests" / "chat" / "template_facts.json"
TEMPLATES = ROOT / ".venv" / "share" / "chat-templates"


def main() -> None:
    """Write the facts."""
    parser = argparse.ArgumentParser(description="Render templates with transformers.")
    parser.add_argument("--templates", type=Path, default=TEMPLATES, help="folder of *.jinja")
    parser.add_argument("--out", type=Path, default=FACTS)
    options = parser.parse_args()
    given = json.loads(CONVERSATIONS.read_text(encoding="utf-8"))
    stop_the_clock(datetime.fromisoformat(given["now"]))
    files = sorted(options.templates.glob("*.jinja"))
    if not files:
        parser.error(f"{options.templates} has no templates: run `make install-dev`")
    templates = {file.stem: facts(file.read_bytes(), given) for file in files}
    found = {"transformers": transformers.__version__, "templates": templates}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def stop_the_clock(now: datetime) -> None:
    """Let `strftime_now` say `now`."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            del tz
            return now

    chat_template_utils.datetime = Stopped


def facts(source: bytes, given: dict[str, Any]) -> dict[str, Any]:
    """What becomes of each conversation: length and hash, an error, or that something is left out."""
    form = find_form(source.decode(), given)
    rendered = {}
    for name, conversation in given["conversations"].items():
        text = render(source.decode(), given, conversation, form)
        rendered[name] = "error"
        if text is not None:
            rendered[name] = "left out" if leaves_out(text, conversation) else digest(text)
    sha256 = hashlib.sha256(source).hexdigest()
    return {"sha256": sha256, **asdict(form), "rendered": rendered}


def digest(text: str) -> str:
    """Characters, and the first 16 digits of the SHA-256."""
    return f"{len(text)} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def leaves_out(text: str, conversation: dict[str, Any]) -> bool:
    """Whether a part of the conversation is not in the text."""
    return any(seen not in text for seen in conversation.get("shows", {}).values())


@dataclass(frozen=True)
class Form:
    """How a template is to be given calls."""

    objects: bool
    """Arguments parsed, not as text."""
    no_content: str | None
    """Content of a message that has calls only."""


def find_form(source: str, given: dict[str, Any]) -> Form:
    """Text for arguments only if it is written as it stands, and an object is not better.

    An object is no better where it is an error, is written as Python writes it, or comes out alike
    but for spaces.
    """
    conversation = given["conversations"]["call"]
    calls = next(each["tool_calls"] for each in conversation["messages"] if "tool_calls" in each)
    arguments = calls[0]["function"]["arguments"]
    for no_content in ("", None):
        as_text = render(source, given, conversation, Form(False, no_content))
        as_object = render(source, given, conversation, Form(True, no_content))
        if as_text is not None and arguments in as_text:
            parsed = json.loads(arguments)
            dense = as_text.replace(arguments, json.dumps(parsed, separators=(",", ":")))
            alike = as_object in (None, as_text, dense) or str(parsed) in as_object
            return Form(not alike, no_content)
        if as_object is not None and not leaves_out(as_object, conversation):
            return Form(True, no_content)
    return Form(True, "")


def render(
    source: str, given: dict[str, Any], conversation: dict[str, Any], form: Form
) -> str | None:
    """Return what transformers renders, None where it raises."""
    messages = json.loads(json.dumps(conversation["messages"]))
    for message in messages:
        if "tool_calls" in message and not message["content"]:
            message["content"] = form.no_content
        for call in message.get("tool_calls", ()) if form.objects else ():
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    names = {"add_generation_prompt": True, **conversation.get("kwargs", {})}
    names |= {"bos_token": given["bos_token"], "eos_token": given["eos_token"]}
    tools = given["tools"] if conversation.get("tools") else None
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages], tools, chat_template=source, **names
        )
    except Exception:  # noqa: BLE001 - templates raise what they like
        return None
    return str(rendered[0])


if __name__ == "__main__":
    main()
