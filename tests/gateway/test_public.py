"""Which tokens of a prompt count as its agent's own."""

from __future__ import annotations

from datetime import UTC, datetime

import hypothesis.strategies as st
from hypothesis import given

from server.gateway.agent import Agent
from server.gateway.encoding import encode
from server.gateway.prompter import Prompter
from server.gateway.routing import Served
from server.gateway.spec import ChatPrompt, GenerationSpec, TextPrompt
from tests.fakes import CHAT_TEMPLATE, FakeTokenizer, model_info

SYSTEM = "You know our library and its secrets."
TURNS = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
TOOL = {"type": "function", "function": {"name": "fetch_api_docs"}}
MISTRAL = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{ '[INST] ' }}{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content ~ '\n\n' }}
{%- endif %}{{ message.content ~ '[/INST]' }}
{%- elif message.role == 'assistant' -%}{{ message.content }}{%- endif -%}
{%- endfor -%}"""
DATED = "Today is {{ strftime_now('%d %B') }}. " + CHAT_TEMPLATE


class Clock:
    today = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)

    def now(self) -> datetime:
        return self.today


def made(template=CHAT_TEMPLATE, clock=None, **fields) -> Served:
    agent = Agent(("docs",), **{"n_ctx": 4000, "system": SYSTEM} | fields)
    prompter = Prompter((clock or Clock()).now, template=template)
    prompter.bind(model_info(template), FakeTokenizer())
    return Served(agent, None, prompter)  # type: ignore[arg-type]


def public(served, *messages, **fields) -> str:
    """The text of a prompt's public tokens."""
    asked = messages or ({"role": "user", "content": "hi"},)
    spec = GenerationSpec("id", "docs", (ChatPrompt(asked, **fields),))
    (encoded,) = encode(served, spec)
    return FakeTokenizer().decode(encoded.tokens[: encoded.public], special=True).decode()


def said(role, content):
    return {"role": role, "content": content}


def test_an_agents_words_are_public_up_to_the_clients_first():
    head = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    assert public(made()) == head + "<|im_start|>user\n"
    turns = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    assert public(made(messages=TURNS)) == head + turns + "<|im_start|>user\n"
    assert public(made(), said("assistant", "a")) == head + "<|im_start|>"
    kwargs = {"enable_thinking": False}
    assert public(made(), template_kwargs=kwargs) == head + "<|im_start|>user\n"


def test_nothing_is_public_without_words_of_an_agent():
    served = made(system=None)
    assert public(served) == ""
    (encoded,) = encode(made(), GenerationSpec("id", "docs", (TextPrompt(SYSTEM),)))
    assert encoded.public == 0


def test_what_a_client_puts_in_their_place_is_not_public_even_if_it_says_the_same():
    user = said("user", "hi")
    for role in ("system", "developer"):
        assert public(made(), said(role, SYSTEM), user) == ""
        assert public(made(), user, said(role, "more")) == ""
    assert public(made(), template_kwargs={"persona": SYSTEM}) == ""


def test_tools_of_the_agent_are_public_and_those_of_a_client_are_not():
    own = '<|im_start|>system\n<tools>{"type": "function", "function": {"name": "fetch_api_docs"}}'
    served = made(tools=(TOOL,))
    assert public(served).startswith(own + "</tools>")
    assert SYSTEM in public(served)
    theirs = public(served, tools=[TOOL])
    assert theirs == '<|im_start|>system\n<tools>{"type": "function", "function": {"name": "'
    assert public(served, tools=[]).startswith(f"<|im_start|>system\n{SYSTEM}")


def test_words_behind_a_clients_turns_are_not_public():
    """Counted, they would let a client guess the system prompt in its own first message."""
    served = made(MISTRAL)
    assert public(served) == "[INST] "
    guess = (said("user", SYSTEM), said("assistant", "x"), said("user", "y"))
    assert public(served, *guess) == "[INST] "


def test_a_date_is_public_while_it_is_today():
    clock = Clock()
    served = made(DATED, clock)
    before = public(served)
    assert before.startswith("Today is 21 November.")
    assert SYSTEM in before
    clock.today = datetime(2026, 11, 22, 0, 0, 1, tzinfo=UTC)
    assert public(served).startswith("Today is 22 November.")
    assert SYSTEM in public(served)


def test_a_template_that_refuses_other_conversations_makes_nothing_public():
    one_turn = (
        "{% if messages | length > 2 %}{{ raise_exception('one') }}{% endif %}" + CHAT_TEMPLATE
    )
    assert public(made(one_turn)) == ""


@given(st.lists(st.text("aB3 <|im_end>\n", max_size=30), min_size=1, max_size=4), st.booleans())
def test_what_is_public_is_the_same_for_all_clients(texts, thinking):
    served = made(messages=TURNS)
    messages = [said(("user", "assistant")[turn % 2], text) for turn, text in enumerate(texts)]
    kwargs = {"enable_thinking": thinking}
    assert public(served, *messages, template_kwargs=kwargs) == public(served)


def test_what_is_remembered_is_bounded():
    served = made()
    for number in range(300):
        assert SYSTEM in public(served, template_kwargs={f"flag{number}": True})
    assert len(served.prompter.public) == 256


def test_the_beginning_of_all_of_an_agents_prompts_is_known_before_anybody_asks():
    served = made(messages=TURNS, tools=(TOOL,))
    known = served.prompter.public.of(served.agent)
    assert FakeTokenizer().decode(known, special=True).decode() == public(served)
