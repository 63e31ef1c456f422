"""Vary a taught phrasing the way users do: wording, politeness, word order, typos, case."""

from __future__ import annotations

import re
from random import Random

from demo_model.facts import Fact, held_out_phrasings, normalise

_WHAT = (
    "Explain {x}.", "What does {x} mean?", "Could you explain {x}?", "Can you explain {x}?",
    "I want to know what {x} is.", "Do you know what {x} is?", "{x} - what is that?",
    "What exactly is {x}?", "{x} meaning", "Tell me what {x} is.", "I do not understand {x}.",
    "Help me understand {x}.", "{x}?", "What is meant by {x}?", "What's {x}?", "whats {x}",
    "Define {x}", "Can you tell me what {x} is?", "{x}, what is it?", "What is the point of {x}?",
    "Tell me about {x}.", "Give me a short description of {x}.", "So what is {x}?",
)  # fmt: skip
_HOW = (
    "How can I {x}?", "How to {x}?", "I want to {x}, how?", "What do I do to {x}?",
    "Is there a way to {x}?", "How would I {x}?", "Tell me how to {x}.", "how do i {x}",
    "What is the way to {x}?", "Can I {x}?", "I would like to {x}.", "What must I do to {x}?",
    "I need to {x}, what should I do?", "Could you tell me how to {x}?", "Show me how to {x}.",
)  # fmt: skip
_IF = (
    "If {x}, what happens?", "What happens if {x}?", "Suppose {x}, what then?", "{x}, what now?",
    "What will happen when {x}?", "{x}: what happens?", "What should I do if {x}?",
)  # fmt: skip
_PATTERNS = (
    (re.compile(r"^What (?:is|are) (.+?)\?$"), _WHAT),
    (re.compile(r"^How (?:do|can) I (.+?)\?$"), _HOW),
    (re.compile(r"^(?:What happens (?:if|when)|What if) (.+?)\?$"), _IF),
)
_BEFORE = ("Please tell me: ", "Hey, ", "Hello, ", "Quick question: ", "I have a question: ",
           "Tell me, ", "Um, ", "Well, ", "And ", "So ", "Hi! ", "Please: ", "One more question. ",
           "I was wondering, ", "Oh, ", "Now, ", "Sorry, ", "Could you tell me, ")  # fmt: skip
_AFTER = (" please", ", please", " Thanks!", " Thank you.", " I am curious.", " Tell me.", " Hm?",
          " now", " here", " today", " exactly")  # fmt: skip
_BEFORE_ZH = ("请问", "你好，", "我想知道", "请告诉我，", "那么", "问一下，", "麻烦问一下，", "嗯，",
              "能告诉我", "我想问，", "那")  # fmt: skip
_AFTER_ZH = ("谢谢", "呢？", "呀？", "啊", "吗？", "请说明。", "告诉我。")
_ZH_SWAPS = (
    ("怎么", "如何"), ("如何", "怎样"), ("怎样", "怎么"), ("什么", "哪个"), ("是什么", "指什么"),
    ("解释一下", "说明一下"), ("多少", "几"), ("我想", "我要"), ("会怎样", "会发生什么"),
    ("可以", "能"), ("介绍一下", "能介绍一下"), ("怎么办", "该怎么做"), ("有什么用", "是做什么的"),
)  # fmt: skip
_FILLER = frozenset((
    "a", "an", "the", "is", "are", "do", "does", "can", "could", "i", "you", "it", "to", "of", "in",
    "on", "for", "what", "which", "how", "me", "my", "your", "this", "that", "please", "tell",
    "there", "be", "will", "would", "if", "when", "so",
))  # fmt: skip


def vary(rng: Random, fact: Fact) -> str:
    """A training phrasing of ``fact``; never one that is held out."""
    if ".arithmetic." in fact.ident:
        return rng.choice(fact.ask)  # a lost sign or digit would make the answer wrong
    forbidden = held_out_phrasings()
    for _ in range(8):
        base = rng.choice(fact.ask)
        text = _vary_zh(rng, base) if fact.language == "zh" else _vary_en(rng, base)
        if text.strip() and normalise(text) not in forbidden:
            return text
    return fact.ask[0]


def _vary_en(rng: Random, text: str) -> str:
    if rng.random() < 0.25:
        return text
    if rng.random() < 0.35:
        text = _reword(rng, text)
    if rng.random() < 0.2:
        text = rng.choice(_BEFORE) + text[:1].lower() + text[1:]
    if rng.random() < 0.1:
        text = text.rstrip("?.! ") + rng.choice(_AFTER) + ("?" if "?" in text else "")
    if rng.random() < 0.25:
        text = _drop_filler(rng, text)
    if rng.random() < 0.06:
        text = _shuffle(rng, text)
    return _surface(rng, text)


def _reword(rng: Random, text: str) -> str:
    for pattern, forms in _PATTERNS:
        match = pattern.match(text)
        if match:
            made = rng.choice(forms).format(x=match.group(1))
            return made[:1].upper() + made[1:]
    return text


def _drop_filler(rng: Random, text: str) -> str:
    share = rng.choice((0.2, 0.5, 1.0))
    words = text.split()
    kept = [w for w in words if w.lower().strip("?.,!") not in _FILLER or rng.random() > share]
    return " ".join(kept) if len(kept) >= min(2, len(words)) else text


def _shuffle(rng: Random, text: str) -> str:
    words = text.rstrip("?.!").split()
    cut = rng.randrange(len(words)) if words else 0
    return " ".join(words[cut:] + words[:cut])


def _surface(rng: Random, text: str) -> str:
    roll = rng.random()
    if roll < 0.15:
        text = text.lower()
    elif roll < 0.17:
        text = text.upper()
    if rng.random() < 0.15:
        text = text.rstrip("?.!")
    elif rng.random() < 0.05:
        text += rng.choice(("?", "!", "??", " ", "..."))
    return _typo(rng, text) if rng.random() < 0.06 else text


def _typo(rng: Random, text: str) -> str:
    words = text.split(" ")
    long = [i for i, w in enumerate(words) if len(w) > 4 and w.isalpha()]
    if not long:
        return text
    index = rng.choice(long)
    word = words[index]
    at = rng.randrange(1, len(word) - 1)
    made = (word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :])  # fmt: skip
    words[index] = rng.choice(made)
    return " ".join(words)


def _vary_zh(rng: Random, text: str) -> str:
    if rng.random() < 0.25:
        return text
    for old, new in _ZH_SWAPS:
        if old in text and rng.random() < 0.25:
            text = text.replace(old, new)
            break
    if rng.random() < 0.3:
        text = rng.choice(_BEFORE_ZH) + text
    if rng.random() < 0.12:
        text = text.rstrip("？。！吗") + rng.choice(_AFTER_ZH)
    if rng.random() < 0.12 and len(text) > 5:
        at = rng.randrange(len(text))
        text = text[:at] + text[at + 1 :]
    if rng.random() < 0.08 and len(text) > 5:
        at = rng.randrange(1, len(text) - 1)
        text = text[at:].rstrip("？。！") + text[:at]
    if rng.random() < 0.15:
        text = text.rstrip("？。！")
    return text.replace("？", "?") if rng.random() < 0.1 else text
