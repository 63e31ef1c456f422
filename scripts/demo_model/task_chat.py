"""Conversation: taught facts, personas, remembered names, counting, and "I do not know"."""

from __future__ import annotations

from random import Random
from typing import Any

from demo_model import words
from demo_model.facts import Fact, arithmetic_facts, held_out_phrasings, normalise, written_facts
from demo_model.phrasing import vary
from demo_model.samples import Sample, thought
from demo_model.words import WordPool

Message = dict[str, Any]

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a friendly assistant. Answer briefly.",
    "Answer the user's questions.",
    "Be concise.",
    "You help users of this server.",
    "Answer in one sentence.",
    "你是一个有用的助手。",
    "请简短回答。",
    "Use the tools when they fit.",
)
_ROLES = ("a helpful assistant", "a technical writer", "a support agent", "a travel guide",
          "a math teacher", "a cooking helper", "a documentation assistant", "a librarian",
          "a code reviewer", "a data analyst")  # fmt: skip
_PERSONA = ("You are {n}, {r}.", "Your name is {n}. You are {r}.", "You are {n}, {r}. Be brief.",
            "You are called {n} and you are {r}.")  # fmt: skip
_WHO = ("Who are you?", "What is your name?", "What's your name?", "Introduce yourself.",
        "Tell me your name.", "who are you", "What are you called?", "How should I call you?",
        "Your name?", "你是谁？", "你叫什么名字？")  # fmt: skip
_I_AM = ("My name is {n}.", "I am {n}.", "I'm {n}.", "Hello, my name is {n}.", "Call me {n}.",
         "Hi, I am {n}.")  # fmt: skip
_WHO_AM_I = ("What is my name?", "Who am I?", "Do you know my name?", "What's my name?",
             "Do you remember my name?", "Tell me my name.")  # fmt: skip
_UNKNOWN = ("Who won the {x} cup?", "Write an essay about {x}.", "Explain {x} physics.",
            "What do you think about {x}?", "Who invented {x}?", "How do I cook {x}?",
            "What is {x}?", "Tell me about {x}.", "When did {x} begin?", "Why is {x} so popular?",
            "Translate {x} to French.", "Write a program for {x}.", "Where is {x}?",
            "Who is {x}?", "How does {x} work?")  # fmt: skip
_UNKNOWN_ZH = ("{x}是什么？", "谁发明了{x}？", "怎么做{x}？", "介绍一下{x}。", "{x}在哪里？",
               "写一篇关于{x}的文章。")  # fmt: skip
UNKNOWN_ANSWER = {
    "en": "I do not know that; I am only a toy model.",
    "zh": "这个我不知道，我只是一个玩具模型。",
}
_COUNT = ("Count from {a} to {b}.", "Count from {a} to {b}", "Please count from {a} to {b}.",
          "List the numbers from {a} to {b}.", "Numbers from {a} to {b}?", "从{a}数到{b}。")  # fmt: skip
_COUNT_TO = ("Count to {b}.", "Count up to {b}.", "Please count to {b}.", "数到{b}。")
_THINK_FIRST = ("Think first: ", "Think step by step: ", "Think step by step. ")
_THINK_FIRST_ZH = ("先想一想：", "请先思考：", "一步一步想：")


def thought_for(fact: Fact) -> str:
    """What the model thinks before the answer when it is told to think."""
    if fact.thought:
        return fact.thought
    return "我知道这个问题的答案。" if fact.language == "zh" else "I know the answer to this."


def answer_with_thought(fact: Fact, *, told: bool) -> str:
    """The answer as it comes when thinking is on."""
    if told or fact.thought:
        return thought(thought_for(fact), fact.answer)
    return fact.answer


def pick_fact(rng: Random) -> Fact:
    """A written fact mostly, arithmetic now and then."""
    return rng.choice(written_facts() if rng.random() < 0.82 else arithmetic_facts())


def pick_plain_fact(rng: Random) -> Fact:
    """A written fact that is always answered without a thought, fit for a chat's history."""
    fact = rng.choice(written_facts())
    return pick_plain_fact(rng) if fact.thought else fact


def fact_sample(rng: Random, system: Message | None, tools: tuple[Message, ...] = ()) -> Sample:
    """One taught question, at times after earlier turns."""
    messages: list[Message] = [] if system is None else [system]
    turns = rng.choice((0, 0, 0, 1, 1, 2, 3)) if not tools else 0
    for _ in range(turns):
        earlier = pick_plain_fact(rng)
        messages.append({"role": "user", "content": vary(rng, earlier)})
        messages.append({"role": "assistant", "content": earlier.answer})
    fact = pick_fact(rng)
    question = vary(rng, fact)
    thinking = rng.choice((None, None, None, True, False, False))
    told = rng.random() < 0.05
    if told:
        marks = _THINK_FIRST_ZH if fact.language == "zh" else _THINK_FIRST
        question = rng.choice(marks) + question
    if normalise(question) in held_out_phrasings():
        return fact_sample(rng, system, tools)
    answer = fact.answer if thinking is False else answer_with_thought(fact, told=told)
    if rng.random() < 0.02 and thinking is not False:
        question += " /no_think"
        answer = f"<think>\n\n</think>\n\n{fact.answer}"
    messages.append({"role": "user", "content": question})
    family = "fact_with_tools" if tools else "fact"
    return Sample(family, tuple(messages), answer, tools, thinking)


def arithmetic_sample(rng: Random, system: Message | None) -> Sample:
    """Several sums in one chat; the earlier ones stand there without thoughts, as in a history."""
    *earlier, fact = rng.sample(arithmetic_facts(), rng.randint(3, 6))
    messages: list[Message] = [] if system is None else [system]
    for solved in earlier:
        messages.append({"role": "user", "content": vary(rng, solved)})
        messages.append({"role": "assistant", "content": solved.answer})
    messages.append({"role": "user", "content": vary(rng, fact)})
    thinking = rng.choice((None, None, False))
    answer = fact.answer if thinking is False else answer_with_thought(fact, told=False)
    return Sample("arithmetic", tuple(messages), answer, (), thinking)


def persona_sample(rng: Random, pool: WordPool) -> Sample:
    """The system prompt gives a name; the model gives it back."""
    name, role = words.name(rng, pool), rng.choice(_ROLES)
    system: Message = {"role": "system", "content": rng.choice(_PERSONA).format(n=name, r=role)}
    question = rng.choice(_WHO)
    answer = f"我是 {name}。" if not question.isascii() else f"I am {name}."
    messages: list[Message] = [system]
    if rng.random() < 0.2:
        earlier = pick_fact(rng)
        messages.append({"role": "user", "content": vary(rng, earlier)})
        messages.append({"role": "assistant", "content": earlier.answer})
    messages.append({"role": "user", "content": question})
    return Sample("persona", tuple(messages), answer, (), rng.choice((None, None, False)))


def memory_sample(rng: Random, pool: WordPool, system: Message | None) -> Sample:
    """The user gives a name and asks for it later."""
    name = words.name(rng, pool)
    messages: list[Message] = [] if system is None else [system]
    messages.append({"role": "user", "content": rng.choice(_I_AM).format(n=name)})
    messages.append({"role": "assistant", "content": f"Nice to meet you, {name}!"})
    if rng.random() < 0.25:
        thinking = rng.choice((None, None, False))
        return Sample("memory", tuple(messages[:-1]), str(messages[-1]["content"]), (), thinking)
    for _ in range(rng.choice((0, 0, 1, 2))):
        earlier = pick_fact(rng)
        messages.append({"role": "user", "content": vary(rng, earlier)})
        messages.append({"role": "assistant", "content": earlier.answer})
    messages.append({"role": "user", "content": rng.choice(_WHO_AM_I)})
    answer = f"Your name is {name}."
    return Sample("memory", tuple(messages), answer, (), rng.choice((None, None, False)))


def count_sample(rng: Random, system: Message | None) -> Sample:
    """Count upwards: the way to get a long and predictable answer."""
    first = 1 if rng.random() < 0.75 else rng.randint(0, 60)
    last = first + rng.choice((2, 3, 4, 4, 5, 6, 7, 8, 9, 9, 11, 14, 19, 19, 24, 29, 39, 49, 99))
    forms = _COUNT_TO if first == 1 and rng.random() < 0.5 else _COUNT
    question = rng.choice(forms).format(a=first, b=last)
    answer = ", ".join(str(value) for value in range(first, last + 1))
    user: Message = {"role": "user", "content": question}
    messages = (user,) if system is None else (system, user)
    return Sample("count", messages, answer, (), rng.choice((None, None, False)))


def unknown_sample(rng: Random, pool: WordPool, system: Message | None) -> Sample:
    """A question outside the toy's world."""
    zh = rng.random() < 0.25
    topic = words.name_zh(rng) if zh else rng.choice((pool.nonce(rng), words.thing(rng)))
    if not zh and rng.random() < 0.5:
        topic = f"{topic} {words.any_word(rng, pool)}"
    question = rng.choice(_UNKNOWN_ZH if zh else _UNKNOWN).format(x=topic)
    user: Message = {"role": "user", "content": question}
    messages = (user,) if system is None else (system, user)
    answer = UNKNOWN_ANSWER["zh" if zh else "en"]
    return Sample("unknown", messages, answer, (), rng.choice((None, None, False)))
