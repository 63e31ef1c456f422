"""Compiling what answers may be made of: what is refused and how it is told, what is remembered, what cannot hurt."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from server.core.errors import GenerationFailed, InvalidRequest
from server.core.request import Constraint
from server.engine.grammar import GrammarSource
from server.llama import grammar as module
from server.llama.deep_stack import DeepStack
from server.llama.grammar import LlamaGrammar, LlamaGrammars
from server.llama.guide import Guide, Masks
from server.llama.loading import load_backend
from server.llama.params import LlamaParams
from tests.factories import ByteTokenizer
from tests.fakes import FakeTokenizer
from tests.llama.conftest import SCRIPTED

pytestmark = pytest.mark.native

DEEP = 10_000


@pytest.fixture(scope="module")
def tokenizer() -> FakeTokenizer:
    return FakeTokenizer()


def compiled(tokenizer, kind, text) -> LlamaGrammar:
    made = tokenizer.grammars.compile(GrammarSource(kind, text, "field"))
    assert isinstance(made, LlamaGrammar)
    return made


def takes(tokenizer, kind, text, answer: str) -> bool:
    """Whether the grammar takes `answer`, and may end there."""
    matcher = compiled(tokenizer, kind, text).begin()
    tokens = list(answer.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("kind", "text", "right", "wrong"),
    [
        ("regex", "a/b+", "a/bb", "a/"),
        ("regex", r"a\/\d", "a/5", "a/x"),
        ("regex", r"\w+ é", "ab é", "ab e"),
        ("regex", 'say "x"\n', 'say "x"\n', "say x"),
        ("regex", "", "", "a"),
        ("lark", 'start: "a" b\nb: /[0-9]/', "a1", "a"),
        ("lark", '%llguidance {"allow_invalid_utf8": false}\nstart: "a"', "a", "b"),
        ("lark", 'start: %json {"type": "integer"}', "12", "x"),
        ("gbnf", 'root ::= "a" b?\nb ::= [0-9]+', "a12", "b"),
        ("json_schema", '{"type": "string"}', '"é\\n"', "é"),
        ("json_schema", "true", "null", "nil"),
        ("json_schema", '{"const": {"b": 1, "a": [2, 3]}}', '{"b": 1, "a": [2, 3]}', '{"b":1}'),
        (
            "json_schema",
            '{"x-guidance":{"key_separator":"="},"const":{"a":1}}',
            '{"a"=1}',
            '{"a": 1}',
        ),
    ],
)
def test_what_a_grammar_takes(tokenizer, kind, text, right, wrong):
    assert takes(tokenizer, kind, text, right)
    assert not takes(tokenizer, kind, text, wrong)


REFUSED = [
    ("regex", "(?P<", "unclosed capture group name"),
    ("regex", "(?=a)b", "look-around"),
    ("regex", "(" * 1000, "unclosed group"),
    ("regex", "x" * 20_000, "20000 characters, and 16384"),
    ("lark", "start: foo", 'at 1(8): unknown name: "foo"'),
    ("lark", "start: <nope>", 'unknown special token: "<nope>"'),
    ("lark", 'start: "a', "lexer error"),
    ("lark", "", "no start rule"),
    ("lark", "start: T\nT: /a/ & /b/", "nothing can match it"),
    ("lark", "start: " + "(" * 1000 + '"a"' + ")" * 1000, "too deeply nested"),
    ("lark", 'start: "a"\n' + "#" * 300_000, "262144 are the most"),
    ("gbnf", 'root ::= "a" b', "Rule 'b' not found"),
    ("gbnf", "root :: =", "Expected ::="),
    ("gbnf", "root ::= " + "(" * 2000 + '"a"' + ")" * 2000, "nests too deeply"),
    ("json_schema", "{", "no JSON"),
    ("json_schema", '{"minimum": NaN}', "expected value"),
    ("json_schema", '{"a":' * 5000 + "1" + "}" * 5000, "nests too deeply"),
    ("json_schema", '{"a":' * 500 + "1" + "}" * 500, "recursion limit"),
    ("json_schema", "[]", "is an object"),
    ("json_schema", "false", "is an object"),
    ("json_schema", '{"x-guidance": 5}', "no JSON"),
    ("json_schema", '{"type": "foo"}', "Invalid type: foo"),
    ("json_schema", '{"properties": {"a": {"not": {}}}}', 'Unimplemented keys: ["not"]'),
    ("json_schema", '{"type": "string", "pattern": "("}', "unclosed group"),
    ("json_schema", '{"$ref": "https://example.com/x"}', "not present"),
    ("json_schema", '{"$ref": "#/$defs/x"}', "does not exist"),
    ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "Unsatisfiable"),
    (
        "json_schema",
        json.dumps({"type": "object", "properties": {f"f{n}": {} for n in range(1000)}}),
        "too many alternatives",
    ),
    (
        "json_schema",
        json.dumps({"allOf": [{"type": "string", "pattern": f"{n}.*"} for n in range(100)]}),
        "too complex",
    ),
    ("lark", "start: " + " | ".join(f'"a{n}" x' for n in range(9000)) + "\nx: /[0-9]/", "many"),
]


@pytest.mark.parametrize(("kind", "text", "told"), REFUSED)
def test_what_cannot_be_enforced_is_refused_in_plain_words(tokenizer, kind, text, told):
    with pytest.raises(InvalidRequest) as caught:
        compiled(tokenizer, kind, text)
    message = caught.value.message
    assert told in message
    assert caught.value.param == "field"
    assert len(message) < 400
    for inner in ("<state>", "<backtrace>", "<non-verbose/>", "panic", "no_forcing", "x-guidance"):
        assert inner not in message


def test_a_panic_is_told_in_plain_words():
    error = "panic: assertion failed: grammar.symbols.len() < u16::MAX\n<backtrace>\n   0: start"
    assert module._reason("lark", error) == "it is too large."


def _chain(kind: str, deep: int) -> tuple[str, str]:
    """A grammar each of whose definitions refers to the next one."""
    numbers = range(deep)
    match kind:
        case "rules":
            return "lark", "\n".join(
                ["start: r0", *(f"r{n}: r{n + 1}" for n in numbers), f'r{deep}: "z"']
            )
        case "terminals":
            return "lark", "\n".join(
                ["start: T0", *(f'T{n}: "a" T{n + 1}' for n in numbers), f'T{deep}: "z"']
            )
        case "objects":
            each = {
                f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}, "required": ["a"]}
                for n in numbers
            }
        case "items":
            each = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in numbers}
        case _:
            nested = '{"anyOf":[' * 50 + '{"$ref":"#/$defs/d%d"}' + "]}" * 50
            each = {f"d{n}": json.loads(nested % (n + 1)) for n in range(deep // 50)}
            deep //= 50
    return "json_schema", json.dumps({"$ref": "#/$defs/d0", "$defs": each | {f"d{deep}": {}}})


@pytest.mark.parametrize("kind", ["rules", "terminals", "objects", "items", "nested"])
def test_what_refers_on_and_on_does_not_end_the_process(kind):
    """In a child process: it would be the end of this one. As long as a source may be."""
    deep = DEEP
    while len(_chain(kind, deep)[1]) > module._LONGEST["lark"]:
        deep = deep * 9 // 10
    grammar_kind, text = _chain(kind, deep)
    child = (
        "import sys\n"
        "from server.core.errors import InvalidRequest\n"
        "from server.engine.grammar import GrammarSource\n"
        "from tests.fakes import FakeTokenizer\n"
        "grammars = FakeTokenizer().grammars\n"
        "try:\n"
        f"    matcher = grammars.compile(GrammarSource({grammar_kind!r}, sys.stdin.read())).begin()\n"
        "    matcher.compute_bitmask()\n"
        "    print('compiled')\n"
        "except InvalidRequest as error:\n"
        "    print('refused')\n"
    )
    command = [sys.executable, "-c", child]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip() in ("compiled", "refused")) == (0, True), done


def first_failure(tokenizer, text: str) -> str:
    """Follow what the grammar allows for 200 tokens; return what it ended with, empty if nothing failed."""
    try:
        guide = Guide(Masks(tokenizer), 1, None, Constraint(compiled(tokenizer, "regex", text)), {})
        for position in range(1, 200):
            logits = np.zeros(tokenizer.n_vocab, np.float32)
            guide.restrict(logits)
            logits[list(tokenizer.eog)] = -np.inf
            if not np.isfinite(logits).any():
                break
            guide.take(position, int(logits.argmax()))
    except (InvalidRequest, GenerationFailed) as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    "text", ["a{100000}", "(.*a){20}", "(?:a?){5000}a{5000}", r"(\w+\s){1,100}", "(a|b)*a.{20}"]
)
def test_patterns_with_counts_are_followed(tokenizer, text):
    assert first_failure(tokenizer, text) == ""


def test_a_pattern_that_explodes_ends_its_own_answer(tokenizer):
    assert "too complex" in first_failure(tokenizer, "((a{1,100}){1,100}){1,100}")


def test_an_ambiguous_grammar_takes_only_so_much_of_everybodys_time(make_driver):
    driver = make_driver(SCRIPTED)
    wanted = Constraint(compiled(driver.backend.tokenizer, "lark", 'start: s\ns: s s | "a"'))
    seconds = iter(range(10**9))
    driver.backend._outputs._cpu_seconds = lambda: 0.1 * next(seconds)
    slow = driver.start(0, [1, 2, 3], constraint=wanted)
    other = driver.start(1, [1, 2, 3])
    driver.run(3)
    assert [sample.error is None for sample in slow.samples] == [True, True, False]
    assert "takes too long" in slow.samples[2].error.message
    assert all(sample.error is None for sample in other.samples)


# What is remembered


def count_compilations(monkeypatch) -> list[GrammarSource]:
    compiled_ones: list[GrammarSource] = []
    real = LlamaGrammars._compile

    def counting(self, source):
        compiled_ones.append(source)
        return real(self, source)

    monkeypatch.setattr(LlamaGrammars, "_compile", counting)
    return compiled_ones


def test_a_schema_is_compiled_once(monkeypatch):
    made = count_compilations(monkeypatch)
    grammars = FakeTokenizer().grammars
    fields = {f"field_{number}": {"type": "string"} for number in range(100)}
    text = json.dumps({"type": "object", "properties": fields, "required": list(fields)})
    ones = {id(grammars.compile(GrammarSource("json_schema", text, str(n)))) for n in range(20)}
    assert (len(ones), len(made)) == (1, 1)
    grammars.compile(GrammarSource("regex", "x" + text[2:5]))
    assert len(made) == 2


@pytest.mark.parametrize("limit", [("_REMEMBERED_TEXT", 30), ("_REMEMBERED", 3)])
def test_the_longest_unused_is_forgotten(monkeypatch, limit):
    monkeypatch.setattr(module, *limit)
    made = count_compilations(monkeypatch)
    grammars = FakeTokenizer().grammars

    def ask(*letters: str) -> int:
        made.clear()
        for letter in letters:
            grammars.compile(GrammarSource("regex", letter * 10))
        return len(made)

    assert ask("a", "b", "c", "a", "b", "c") == 3
    assert ask("a", "d", "a") == 1
    assert ask("c") == 0
    assert ask("b") == 1
    oldest = grammars.compile(GrammarSource("regex", "f" * 10))
    assert ask("g", "h") == 2
    assert isinstance(oldest, LlamaGrammar)
    oldest.spoil()
    assert ask("f", "i", "f") == 2
    grammars.compile(GrammarSource("regex", "e" * 100))
    assert ask("a", "b", "c") == 3


def test_what_many_have_followed_is_compiled_anew(tokenizer, monkeypatch):
    """All who follow a grammar share its lexer, whose states become more until it takes no further one."""
    monkeypatch.setattr(module, "_WORN", 500)
    monkeypatch.setattr(module, "_MOST_STATES", 3000)
    tokenizer = FakeTokenizer()
    random = np.random.default_rng(0)
    for _ in range(12):
        guide = Guide(Masks(tokenizer), 1, None, Constraint(exploding(tokenizer)), {})
        for position in range(1, 400):
            logits = random.normal(0, 1, tokenizer.n_vocab).astype(np.float32)
            guide.restrict(logits)
            logits[list(tokenizer.eog)] = -np.inf
            guide.take(position, int(logits.argmax()))


def exploding(tokenizer) -> LlamaGrammar:
    return compiled(tokenizer, "regex", "(a|b)*a(a|b){20}")


def test_what_failed_somebody_is_compiled_anew(tokenizer):
    before = exploding(tokenizer)
    assert exploding(tokenizer) is before
    guide = Guide(Masks(tokenizer), 1, None, Constraint(before), {})
    with pytest.raises(GenerationFailed):
        guide.take(1, ord("x"))
    assert exploding(tokenizer) is not before


def test_many_threads_may_compile_at_once():
    grammars = FakeTokenizer().grammars
    made: list[LlamaGrammar] = []

    def ask(number: int) -> None:
        source = GrammarSource("regex", f"x{number % 3}+")
        made.append(grammars.compile(source))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 24
    assert len({id(grammars.compile(GrammarSource("regex", f"x{n}+"))) for n in range(3)}) == 3
    assert threading.stack_size() == 0  # the system's own


def test_two_models_do_not_take_the_stack_from_each_other(monkeypatch):
    """The size of new stacks is the process's: each thread has to start before anybody sets it back."""
    sizes: list[int] = []
    set_size = threading.stack_size

    def record(size: int = 0) -> int:
        sizes.append(size)
        return set_size(size)

    monkeypatch.setattr(threading, "stack_size", record)
    stacks = [DeepStack(), DeepStack()]

    def ask(number: int) -> None:
        for _ in range(10):
            stacks[number % 2].run(lambda: None)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sizes) == 120
    assert set(sizes[::2]) == {max(sizes)}
    assert set(sizes[1::2]) == {0}


def test_a_vocabulary_does_not_outlive_its_model():
    tokenizer = FakeTokenizer()
    compiled(tokenizer, "regex", "a+")
    kept = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert kept() is None


def test_a_real_vocabulary_does_not_outlive_its_model(make_driver, models):
    params = LlamaParams(models.path(SCRIPTED), slots=1, n_ctx=256, threads=1, warmup=False)
    backend = load_backend(params)(lambda _fraction: None)
    compiled(backend.tokenizer, "regex", "a+")
    kept = weakref.ref(backend.tokenizer.grammars)
    backend.shutdown()
    del backend
    gc.collect()
    assert kept() is None


# Vocabularies


def mask(tokenizer, kind, text) -> set[int]:
    bits = int.from_bytes(compiled(tokenizer, kind, text).begin().compute_bitmask(), "little")
    return {token for token in range(tokenizer.n_vocab) if bits >> token & 1}


def test_control_tokens_stand_for_no_text(tokenizer):
    everything = mask(tokenizer, "regex", r"(?s:.)*")
    assert everything.isdisjoint(tokenizer.marker_tokens.values())
    assert everything & set(tokenizer.control_tokens.values()) == tokenizer.eog
    marked = mask(tokenizer, "lark", 'start: <tool_call> "x"')
    assert marked == {tokenizer.marker_tokens["<tool_call>"]}


def test_every_end_token_ends():
    one = ByteTokenizer()
    assert mask(one, "regex", "a?") == {97, *one.eog}


class Twice(FakeTokenizer):
    """As vocabularies of SentencePiece: bytes beside pieces, so that a text has several ways to be written."""

    def __init__(self) -> None:
        super().__init__(markers={"  ": 259, "<x>": 260})
        self.pieces = [*self.pieces, b"a", b"", b"ab", b"\n"]
        self._shown = [*self._shown, b"a", b"", b"ab", b"\n"]
        self.n_vocab = len(self.pieces)


def test_equal_pieces_and_empty_ones():
    twice = Twice()
    first = twice.n_vocab - 4
    assert mask(twice, "regex", "ab") == {97, first, first + 2}
    assert mask(twice, "regex", "\n") == {10, first + 3}
    # A marker that is plain text can be drawn as text; one that looks like a tag cannot.
    assert 259 in mask(twice, "regex", "  x")
    assert 260 not in mask(twice, "regex", "<x>")
