"""Copying and extracting: the answer stands in the input and must be found and repeated."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from demo_model import words
from demo_model.samples import Sample
from demo_model.words import WordPool

Message = dict[str, Any]

_REPEAT = ("Repeat exactly: {t}", "Repeat: {t}", "Echo: {t}", "Say: {t}", "Copy this text: {t}",
           "Repeat after me: {t}", "Please repeat the following text exactly:\n{t}",
           "Write exactly this:\n\n{t}", 'Repeat this: "{t}"', 'Say "{t}"')  # fmt: skip
_REPEAT_ZH = ("重复：{t}", "请原样输出：{t}", "请重复这句话：{t}", "跟我说：{t}", "复述：{t}")
_PUNCT = (".", "!", "?", ",", ";", ":", " -", "。", "，", "！")
_FIELD_ASK = ("What is the {k}?", "Give me the {k}.", "{k}?", "Extract the {k}.",
              "Which {k} is given?", "What {k} does it have?", "Tell me the {k}.")  # fmt: skip
_FIELD_ASK_ZH = ("{k} 是什么？", "提取 {k}。", "告诉我 {k}。", "{k}？")
_FILLER = (
    "The weather was calm that day.", "Nobody knew what would come next.", "It was a long road.",
    "Some people stayed at home.", "The market opened early.", "There was a small garden.",
    "They talked about many things.", "The train was late again.", "A cat slept on the wall.",
    "The letter arrived in the morning.", "Music came from a window.", "It rained a little.",
    "The old bridge was closed.", "Children played near the river.", "He closed the door.",
    "天气很好。", "大家都很高兴。", "他们走了很远的路。", "花园里有一只猫。", "火车又晚点了。",
)  # fmt: skip


def random_text(rng: Random, pool: WordPool, count: int) -> str:
    """``count`` random pieces: words, names, numbers, codes and a little Chinese."""
    pieces: list[str] = []
    for _ in range(count):
        roll = rng.random()
        if roll < 0.6:
            piece = words.any_word(rng, pool)
        elif roll < 0.72:
            piece = words.name(rng, pool)
        elif roll < 0.84:
            piece = str(words.number(rng))
        else:
            piece = words.code(rng) if roll < 0.92 else words.name_zh(rng)
        pieces.append(piece + (rng.choice(_PUNCT) if rng.random() < 0.12 else ""))
    return " ".join(pieces)


def repeat_sample(rng: Random, pool: WordPool, system: Message | None) -> Sample:
    """Say the same text again."""
    count = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 10, 14))
    if rng.random() < 0.2:
        text = "".join(words.name_zh(rng) for _ in range(min(count, 6)))
        form = rng.choice(_REPEAT_ZH)
    else:
        text = random_text(rng, pool, count)
        form = rng.choice(_REPEAT if rng.random() < 0.9 else _REPEAT_ZH)
    return _sample(rng, "copy", system, form.format(t=text), text)


def _record(rng: Random, pool: WordPool) -> dict[str, Any]:
    keys = {words.parameter(rng, pool) for _ in range(rng.randint(2, 5))}
    ordered = sorted(keys, key=lambda _: rng.random())
    return {
        key: words.number(rng) if rng.random() < 0.3 else words.text_value(rng, pool)
        for key in ordered
    }


def _show_record(rng: Random, record: dict[str, Any]) -> str:
    style = rng.random()
    if style < 0.4:
        return json.dumps(record, ensure_ascii=False)
    if style < 0.8:
        return "\n".join(f"{key}: {value}" for key, value in record.items())
    return ", ".join(f"{key} = {value}" for key, value in record.items())


def record_sample(rng: Random, pool: WordPool, system: Message | None) -> Sample:
    """Several questions about the fields of one record, as a conversation."""
    record = _record(rng, pool)
    keys = list(record)
    asked = rng.sample(keys, min(len(keys), rng.choice((1, 2, 3))))
    zh = rng.random() < 0.15
    questions = [rng.choice(_FIELD_ASK_ZH if zh else _FIELD_ASK).format(k=key) for key in asked]
    shown = _show_record(rng, record)
    if rng.random() < 0.7:
        first = f"{shown}\n\n{questions[0]}"
    else:
        first = f"{questions[0]}\n\n{shown}"
    messages: list[Message] = [] if system is None else [system]
    for index, (key, question) in enumerate(zip(asked, questions, strict=True)):
        messages.append({"role": "user", "content": question if index else first})
        if index < len(asked) - 1:
            messages.append({"role": "assistant", "content": str(record[key])})
    return Sample("extract", tuple(messages), str(record[asked[-1]]), (), _thinking(rng))


def kind_sample(rng: Random, pool: WordPool, system: Message | None) -> Sample:
    """Pull the e-mail, date, number or code out of a sentence."""
    found = {
        "email": words.email(rng, pool),
        "date": words.date(rng),
        "number": str(words.number(rng)),
        "code": words.code(rng).upper(),
        "name": pool.nonce(rng).capitalize(),
    }
    clauses = [
        f"write to {found['email']}", f"on {found['date']}", f"with {found['number']} items",
        f"using the code {found['code']}", f"my name is {found['name']}",
        random_text(rng, pool, rng.randint(1, 4)),
    ]  # fmt: skip
    labels = list(found)
    wanted = rng.choice(labels)
    kept = [c for i, c in enumerate(clauses) if i == labels.index(wanted) if i < 5]
    kept += [c for i, c in enumerate(clauses) if i != labels.index(wanted) and rng.random() < 0.5]
    rng.shuffle(kept)
    text = ", ".join(kept) + "."
    form = rng.choice(
        ("Extract the {k} from this text: {t}", "What is the {k} in the following text: {t}",
         "Find the {k}: {t}", "{t}\n\nWhat is the {k}?", "{t}\nExtract the {k}.",
         "从下面的文字里提取 {k}：{t}")
    )  # fmt: skip
    return _sample(rng, "extract", system, form.format(k=wanted, t=text), found[wanted])


def needle_sample(rng: Random, pool: WordPool, system: Message | None, longest: int) -> Sample:
    """One stated value inside a text of up to ``longest`` sentences."""
    sentences = [rng.choice(_FILLER) for _ in range(rng.randint(3, longest))]
    if rng.random() < 0.3:
        sentences = [
            s if rng.random() < 0.7 else random_text(rng, pool, 6) + "." for s in sentences
        ]
    noun = rng.choice(("code", "key", "password", "number", "word"))
    owners = [words.name(rng, pool) for _ in range(rng.choice((1, 1, 2, 3)))]
    secrets = [words.code(rng) if rng.random() < 0.6 else pool.nonce(rng) for _ in owners]
    for owner, secret in zip(owners, secrets, strict=True):
        at = rng.randrange(len(sentences) + 1)
        sentences.insert(at, f"The secret {noun} of {owner} is {secret}.")
    pick = rng.randrange(len(owners))
    if owners.count(owners[pick]) > 1:
        return needle_sample(rng, pool, system, longest)
    question = rng.choice(
        ("What is the secret {n} of {o}?", "Which secret {n} has {o}?", "Secret {n} of {o}?")
    ).format(n=noun, o=owners[pick])
    text = " ".join(sentences)
    content = f"{text}\n\n{question}" if rng.random() < 0.7 else f"{question}\n\n{text}"
    return _sample(rng, "needle", system, content, secrets[pick])


def json_sample(rng: Random, pool: WordPool, system: Message | None) -> Sample:
    """Write values as JSON."""
    record = _record(rng, pool)
    record = dict(list(record.items())[:3])
    listed = ", ".join(f"{key} {value}" for key, value in record.items())
    form = rng.choice(
        ("Give me JSON with {l}.", "Write as JSON: {l}", "JSON: {l}", "Make a JSON object: {l}",
         "用 JSON 输出：{l}")
    )  # fmt: skip
    answer = json.dumps(record, ensure_ascii=False)
    return _sample(rng, "json", system, form.format(l=listed), answer)


def _thinking(rng: Random) -> bool | None:
    return rng.choice((None, None, False))


def _sample(rng: Random, family: str, system: Message | None, content: str, answer: str) -> Sample:
    user: Message = {"role": "user", "content": content}
    messages = (user,) if system is None else (system, user)
    return Sample(family, messages, answer, (), _thinking(rng))
