"""What tests of JSON Schemas share: the way from a client's schema to what may be answered."""

from __future__ import annotations

from typing import Any

from server.chat.json_schema import check_schema
from server.engine.grammar import GrammarSource
from server.llama.grammar import LlamaGrammar
from tests.fakes import FakeTokenizer

PARAM = "response_format.json_schema.schema"


def compiled(schema: Any, tokenizer: FakeTokenizer | None = None) -> LlamaGrammar:
    """The grammar for a client's schema over a vocabulary of bytes. Raises `InvalidRequest`."""
    grammars = (tokenizer or FakeTokenizer()).grammars
    made = grammars.compile(GrammarSource("json_schema", check_schema(schema, PARAM)))
    assert isinstance(made, LlamaGrammar)
    return made


def admitted(grammar: LlamaGrammar, answer: str) -> bool:
    """Whether the text passes as a whole answer."""
    matcher, tokens = grammar.begin(), list(answer.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def admits(schema: Any, *answers: str) -> list[bool]:
    """Which of these texts pass as a whole answer."""
    grammar = compiled(schema)
    return [admitted(grammar, answer) for answer in answers]
