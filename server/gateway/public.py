"""Which first tokens of a prompt are its agent's own words, whoever asks."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from server.core.errors import OnegpuError
from server.engine.prefix_index import common_prefix_length
from server.gateway.agent import SYSTEM_ROLES, Agent, Messages
from server.gateway.spec import ChatPrompt

_REMEMBERED = 256

Encode = Callable[[ChatPrompt, int], list[int]]
"""Token ids of a whole conversation, of at most so many tokens."""


def _said(role: str, content: str) -> Mapping[str, Any]:
    return {"role": role, "content": content}


def _tool(name: str) -> Mapping[str, Any]:
    function = {"name": name, "description": name, "parameters": {"type": "object"}}
    return {"type": "function", "function": function}


_CONVERSATIONS: tuple[Messages, ...] = (
    (_said("user", "a"),),
    (_said("user", "B"),),
    (_said("user", "3"), _said("assistant", "c"), _said("user", "D")),
)
"""Clients' parts that have no beginning in common. Some templates put the system prompt behind earlier turns."""
_TOOLS = ((_tool("a"),), (_tool("B"),), (_tool("c"), _tool("D")))


@dataclass(frozen=True, slots=True)
class _Known:
    """What all these clients' prompts began with, and of what: held so that their ids stay theirs."""

    tokens: list[int]
    agent: Agent
    tools: Sequence[Mapping[str, Any]]


class PublicPrefixes:
    """Remembers for each agent what every prompt begins with that adds nothing of a client's before it.

    Of a request these tokens tell only whom it asked. What depends on the client is never among them: with a
    system message of its own or with text for the template nothing counts, with tools what comes before all tools.
    For any thread.
    """

    def __init__(self, encode: Encode, now: Callable[[], datetime]) -> None:
        """`now`: what templates are told the date is; what they make of it holds for a minute."""
        self._encode = encode
        self._now = now
        self._known: OrderedDict[object, _Known] = OrderedDict()

    def __len__(self) -> int:
        """Count what is remembered."""
        return len(self._known)

    def of(self, agent: Agent) -> list[int]:
        """Return what the prompts of all clients begin with that bring neither tools nor words for the template."""
        return self._tokens(agent, ChatPrompt(()))

    def count(self, agent: Agent, prompt: ChatPrompt, tokens: Sequence[int]) -> int:
        """Return how many of the `tokens` of a client's `prompt` are its agent's own."""
        own = any(message["role"] in SYSTEM_ROLES for message in prompt.messages)
        flags = all(isinstance(value, bool) for value in prompt.template_kwargs.values())
        if own or not flags or not (agent.system or agent.messages or agent.tools):
            return 0
        return common_prefix_length(tokens, self._tokens(agent, prompt))

    def _tokens(self, agent: Agent, prompt: ChatPrompt) -> list[int]:
        offered = agent.offered(prompt.tools)
        theirs = prompt.tools is not None and len(prompt.tools) > 0
        minute = self._now().replace(second=0, microsecond=0)
        kwargs = frozenset(prompt.template_kwargs.items())
        tools = None if theirs else id(offered) if offered else 0
        key = (agent.system, id(agent.messages), tools, kwargs, minute)
        known = self._known.get(key)
        if known is None:
            tokens = self._common(agent, offered, prompt.template_kwargs, theirs=theirs)
            known = self._known[key] = _Known(tokens, agent, offered)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return known.tokens

    def _common(
        self,
        agent: Agent,
        offered: Sequence[Mapping[str, Any]],
        kwargs: Mapping[str, Any],
        *,
        theirs: bool,
    ) -> list[int]:
        """Return what the prompts of clients begin with who have nothing in common but their agent."""
        common: list[int] | None = None
        for messages, tools in zip(_CONVERSATIONS, _TOOLS, strict=True):
            prompt = ChatPrompt(agent.compose(messages), tools if theirs else offered, kwargs)
            try:
                tokens = self._encode(prompt, sys.maxsize)
            except OnegpuError:  # the template wants other conversations
                return []
            common = tokens if common is None else common[: common_prefix_length(common, tokens)]
        return common or []
