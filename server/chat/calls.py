"""Which form a model's calls have, by the template that shows it to the model."""

from __future__ import annotations

import re

from server.chat.forms.functions import FunctionsForm
from server.chat.forms.hermes import HermesForm
from server.chat.reply import ToolForm

# Templates may end one Jinja string after the tag and begin the next.
_JOINT = r"(?:\\n|\\?[\s'\"{}~+-])*"
_HERMES = re.compile(rf"<tool_call>{_JOINT}\\?\"name\\?\"")
_FUNCTIONS = re.compile(rf"<tool_call>{_JOINT}<function=")


def find_form(source: str | None) -> ToolForm | None:
    """Return the form that the template `source` writes calls in; None if it is none of those known."""
    if source is None:
        return None
    if _FUNCTIONS.search(source) and "<parameter=" in source:
        return FunctionsForm()
    if _HERMES.search(source):
        return HermesForm()
    return None
