"""Who asks what: the published list. Sizes are tokens of the model that is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.bench.dialogues import Question, Task, conversation, forever, once, tool_steps
from server.bench.texts import Texts

SHORT, ANSWER = 44, 48
AGENT_PROMPT, OWN_PROMPT, AGENT_QUESTION, AGENT_ANSWER = 1400, 1000, 24, 32


@dataclass(frozen=True)
class Row:
    """What is measured at a stretch: `users` take the tasks in turn until none is left."""

    tasks: Sequence[Task]
    users: int
    phase: str = ""
    """`cold` and `warm`, where a scenario has both."""
    beside: Sequence[Task] = ()
    """Streams that run from before the first task until the last one is done."""
    sticky: bool = False
    """A user asks all questions of a task one after the other, instead of going on to the next task."""


@dataclass(frozen=True)
class Scenario:
    """A name, what it is for, and its rows."""

    name: str
    about: str
    users: int
    rows: Callable[[Texts, int], Sequence[Row]] = field(repr=False)
    first_of: str = ""
    """The kind of question whose first tokens count; empty: all."""
    gap_of: str = ""
    """The kind whose gaps count."""


def _user(text: str, max_tokens: int, kind: str = "") -> Task:
    return once(Question([{"role": "user", "content": text}], max_tokens, kind))


def _agent(texts: Texts, prompt: str, *name: object) -> Task:
    messages = [
        {"role": "system", "content": prompt},
        {"role": "user", "content": texts.tokens(AGENT_QUESTION, *name)},
    ]
    return once(Question(messages, AGENT_ANSWER, "agent"))


def _shorts(texts: Texts, count: int) -> list[Task]:
    return [_user(texts.tokens(SHORT, "short", i), ANSWER, "short") for i in range(count)]


def _short(texts: Texts, users: int) -> list[Row]:
    return [Row(_shorts(texts, max(24, 4 * users)), users)]


def _overload(texts: Texts, users: int) -> list[Row]:
    return [Row(_shorts(texts, 2 * users), users)]


def _agents(texts: Texts, users: int) -> list[Row]:
    prompt, count = texts.tokens(AGENT_PROMPT, "agent"), 3 * users

    def asked(phase: str) -> Row:
        return Row([_agent(texts, prompt, phase, i) for i in range(count)], users, phase)

    return [asked("cold"), asked("warm")]


def _rotate(texts: Texts, users: int) -> list[Row]:
    agents = 4 * users
    prompts = [texts.tokens(OWN_PROMPT, "agent", i) for i in range(agents)]

    def asked(phase: str, rounds: int) -> Row:
        tasks = [
            _agent(texts, prompt, phase, turn, i)
            for turn in range(rounds)
            for i, prompt in enumerate(prompts)
        ]
        return Row(tasks, users, phase)

    return [asked("cold", 1), asked("warm", 2)]


def _turns(texts: Texts, users: int) -> list[Row]:
    tasks = [conversation(texts, 4, 100, 32, "conversation", i) for i in range(2 * users)]
    return [Row(tasks, users)]


def _longdoc(texts: Texts, users: int) -> list[Row]:
    documents = [_document(texts, 3300, 32, i) for i in range(3)]
    beside = [forever(texts, SHORT, 96, "stream", i) for i in range(users)]
    return [Row(documents, 1, beside=beside)]


def _document(texts: Texts, tokens: int, max_tokens: int, number: int) -> Task:
    text = texts.tokens(tokens, "document", number)
    return _user(f"{text}\n\nSummarise this document.", max_tokens, "document")


def _mixed(texts: Texts, users: int) -> list[Row]:
    tens = max(1, -(-2 * users // 10))
    kinds = texts.shuffled((["short"] * 6 + ["agent"] * 3 + ["document"]) * tens, "order")
    prompt = texts.tokens(AGENT_PROMPT, "agent")
    tasks = []
    for i, kind in enumerate(kinds):
        if kind == "short":
            tasks.append(_user(texts.tokens(SHORT, kind, i), ANSWER, kind))
        elif kind == "agent":
            tasks.append(_agent(texts, prompt, kind, i))
        else:
            tasks.append(_document(texts, 2200, ANSWER, i))
    return [Row(tasks, users)]


def _report_short(texts: Texts, users: int) -> list[Row]:
    tasks = [_user(texts.words(40, "report", i)[:128], 64, "short") for i in range(4 * users)]
    return [Row(tasks, users)]


def _report_longdoc(texts: Texts, users: int) -> list[Row]:
    return [Row([_document(texts, 3600, 256, i) for i in range(2 * users)], users)]


def _report_tools(texts: Texts, users: int) -> list[Row]:
    tasks = [tool_steps(texts, 64, "tools", i) for i in range(2 * users)]
    return [Row(tasks, users, sticky=True)]


SCENARIOS = (
    Scenario("short", f"unique prompts of some 58 tokens, {ANSWER} out", 4, _short),
    Scenario(
        "agents", "one system prompt of 1,400 tokens for all; warm: new questions", 4, _agents
    ),
    Scenario(
        "rotate",
        "four agents per user with 1,000-token prompts of their own, asked in turn; warm: new questions",
        2,
        _rotate,
    ),
    Scenario("turns", "two conversations of four turns per user, interleaved", 4, _turns),
    Scenario(
        "longdoc",
        "streams run (their gaps count) while documents of 3,300 tokens come in (their first tokens count)",
        3,
        _longdoc,
        first_of="document",
        gap_of="stream",
    ),
    Scenario(
        "mixed",
        "60 % short, 30 % one agent with 1,400 tokens, 10 % documents of 2,200 tokens",
        24,
        _mixed,
    ),
    Scenario("overload", "short, from 60 users at once", 60, _overload),
    Scenario("report-short", "at most 128 characters, 64 tokens out", 1, _report_short),
    Scenario("report-longdoc", "a document of 3,600 tokens summarised in 256", 1, _report_longdoc),
    Scenario("report-tools", "retrieve, run, chart, answer; the tools are stubs", 1, _report_tools),
)
