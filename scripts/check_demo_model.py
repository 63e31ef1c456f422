"""The demo model's held-out check: ask it what it was taught, and what it never saw.

    python scripts/check_demo_model.py --gguf models/demo.gguf
    python scripts/check_demo_model.py --base-url http://127.0.0.1:8000/v1 --sample 50

The first form loads the file with llama-cpp-python and renders prompts itself; the second asks a
running server through the OpenAI API. Both are greedy. Paraphrases are phrasings that training
never used; tool names are made of word parts that training never used. The exit status is 1 when
a target is missed. `demo_model/grading.py` states the rules.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo_model.grading import Ask, Question, Score, grade, questions, sampled, table
from demo_model.samples import Sample

__all__ = [
    "Ask",
    "Question",
    "Score",
    "gguf_ask",
    "grade",
    "http_ask",
    "questions",
    "sampled",
    "table",
]

MOST_TOKENS = 512


def openai_messages(sample: Sample) -> Iterator[dict[str, Any]]:
    """The sample's messages as the OpenAI API wants them: ids, and arguments as text."""
    number = 0
    for message in sample.messages:
        shown = dict(message)
        if "tool_calls" in message:
            number += 1
            shown["tool_calls"] = [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                    },
                }
                for call in message["tool_calls"]
            ]
        if message["role"] == "tool":
            shown["tool_call_id"] = f"call_{number}"
        yield shown


def openai_body(sample: Sample, model: str) -> dict[str, Any]:
    """The request for one sample."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(openai_messages(sample)),
        "temperature": 0,
        "max_tokens": MOST_TOKENS,
    }
    if sample.tools:
        body["tools"] = list(sample.tools)
    if sample.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": sample.thinking}
    return body


def reply_text(message: dict[str, Any]) -> str:
    """A reply as the model wrote it, whether or not the server has parsed its tool calls."""
    parts = [message.get("content") or ""]
    for call in message.get("tool_calls") or []:
        function = call["function"]
        name = json.dumps(function["name"], ensure_ascii=False)
        body = f'{{"name": {name}, "arguments": {function["arguments"]}}}'
        parts.append(f"<tool_call>\n{body}\n</tool_call>")
    return "\n".join(part for part in parts if part)


@contextmanager
def http_ask(base_url: str, api_key: str = "none", timeout: float = 300.0) -> Iterator[Ask]:
    """Ask a server; the model is the first that it lists. The connections close at the end."""
    import httpx  # noqa: PLC0415 - only this way of asking needs it

    with httpx.Client(
        base_url=base_url.rstrip("/"),
        headers={"Authorization": f"Bearer {api_key}"},
        timeout=timeout,
    ) as client:
        listed = client.get("/models").raise_for_status().json()["data"]
        if not listed:
            raise SystemExit(f"{base_url}/models lists no model; is it still loading?")
        model = str(listed[0]["id"])

        def ask(sample: Sample) -> str:
            answer = client.post("/chat/completions", json=openai_body(sample, model))
            if answer.is_error:
                raise SystemExit(f"{answer.request.url}: {answer.status_code} {answer.text}")
            return reply_text(answer.json()["choices"][0]["message"])

        yield ask


def gguf_ask(path: Path, *, temperature: float = 0.0, context: int = 4096) -> Ask:
    """Ask a file through llama-cpp-python."""
    from llama_cpp import Llama  # noqa: PLC0415 - only this way of asking needs it

    model = Llama(str(path), n_ctx=context, verbose=False)

    def ask(sample: Sample) -> str:
        prompt = model.tokenize(sample.prompt().encode(), add_bos=False, special=True)
        stop = model.token_eos()
        made: list[int] = []
        for token in model.generate(prompt, temp=temperature, repeat_penalty=1.0, top_p=0.95):
            if token == stop or len(made) >= MOST_TOKENS:
                break
            made.append(token)
        return model.detokenize(made, special=True).decode("utf-8", "replace")

    return ask


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--base-url", help="a running server, such as http://127.0.0.1:8000/v1")
    source.add_argument("--gguf", type=Path, help="a GGUF file, such as models/demo.gguf")
    parser.add_argument("--sample", type=int, help="ask at most N questions of each family")
    parser.add_argument("--seed", type=int, default=7, help="chooses the questions (%(default)s)")
    parser.add_argument("--family", action="append", help="ask only this family (repeatable)")
    parser.add_argument("--no-think", action="store_true", help="ask everything without thinking")
    parser.add_argument(
        "--parallel", type=int, default=1, help="questions at once, with --base-url (%(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="only with --gguf")
    parser.add_argument("--show-wrong", action="store_true", help="print the wrong replies")
    return parser.parse_args(arguments)


def choose(options: argparse.Namespace) -> list[Question]:
    """The questions that the command line asks for."""
    chosen = questions(options.seed)
    if options.family:
        known = {question.family for question in chosen}
        unknown = set(options.family) - known
        if unknown:
            raise SystemExit(
                f"no family {', '.join(unknown)}; there are {', '.join(sorted(known))}"
            )
        chosen = [question for question in chosen if question.family in options.family]
    if options.sample:
        chosen = sampled(chosen, options.sample, options.seed)
    if options.no_think:
        chosen = [question.without_thinking() for question in chosen]
    return chosen


def show_wrong(scores: list[Score]) -> None:
    """Print every wrong reply beside what was expected."""
    for score in scores:
        for wrong in score.wrong:
            print(f"\n[{score.family}] {wrong.question}")
            print(f"  expected: {wrong.expected}\n  got:      {wrong.reply}")


def main() -> int:
    """Ask, grade, print; 1 when a target is missed."""
    options = parse()
    chosen = choose(options)
    began = time.monotonic()
    if options.base_url:
        with http_ask(options.base_url) as ask:
            scores = grade(ask, chosen, options.parallel)
    else:
        scores = grade(gguf_ask(options.gguf, temperature=options.temperature), chosen)
    if options.show_wrong:
        show_wrong(scores)
    print(table(scores))
    print(f"{len(chosen)} questions in {time.monotonic() - began:.0f} s")
    return 1 if any(score.missed for score in scores) else 0


if __name__ == "__main__":
    sys.exit(main())
