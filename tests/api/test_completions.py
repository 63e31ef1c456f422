"""Legacy completions."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from tests.api.asking import post
from tests.fakes import CONTROL, FakeEngine, Script
from tests.serving import MODEL, Stack, serve

pytestmark = pytest.mark.anyio
TEXT = "/v1/completions"


@pytest.fixture
def stack():
    made = Stack(engine=FakeEngine(script=lambda _: Script(texts=("é ", "ok"))))
    yield made
    assert made.admission.outstanding == 0
    made.service.shutdown()


async def ask(stack, **fields):
    answer = await post(stack, TEXT, {"model": MODEL, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_form_of_an_answer(stack):
    document = await ask(stack, prompt="Say")
    assert document["id"].startswith("cmpl-")
    assert document["object"] == "text_completion"
    assert document["choices"] == [
        {"index": 0, "text": "é ok", "logprobs": None, "finish_reason": "stop"}
    ]
    assert document["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("prompt", ["<|im_end|>", ["<|im_end|>"]])
async def test_control_tokens_in_a_raw_prompt_are_read_unless_forbidden(stack, prompt):
    await ask(stack, prompt=prompt)
    await ask(stack, prompt=prompt, parse_special=False)
    read, kept = (list(request.prompt) for request in stack.engine.requests)
    assert read == [CONTROL["<|im_end|>"]]
    assert kept == list(b"<|im_end|>")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", [[97, 98]]),
        (["a", "b"], [[97], [98]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
        (["a", [98]], [[97], [98]]),
    ],
)
async def test_all_forms_of_prompts(stack, prompt, prompts):
    document = await ask(stack, prompt=prompt, n=2)
    assert [list(r.prompt) for r in stack.engine.requests] == [p for p in prompts for _ in (0, 1)]
    assert [choice["index"] for choice in document["choices"]] == list(range(2 * len(prompts)))
    assert document["usage"]["prompt_tokens"] == sum(map(len, prompts))


async def test_several_prompts_share_what_their_answers_are_held_to(stack):
    await ask(stack, prompt=["a", "b", "c"], guided_json={"type": "object"})
    first, *others = [request.constraint for request in stack.engine.requests]
    assert first is not None
    assert len(others) == 2
    assert all(constraint is first for constraint in others)


async def test_echo_shows_the_prompt_first(stack):
    document = await ask(stack, prompt=["Say ", [257, 97]], echo=True)
    assert [c["text"] for c in document["choices"]] == ["Say é ok", "<|im_start|>aé ok"]


async def test_log_probabilities_are_parallel_lists(stack):
    document = await ask(stack, prompt="x", logprobs=1, best_of=1)
    lists = document["choices"][0]["logprobs"]
    assert lists["tokens"] == ["�", "�", " ", "o", "k"]
    assert lists["token_logprobs"] == [-0.5] * 5
    assert lists["text_offset"] == [0, 1, 1, 2, 3]
    assert lists["top_logprobs"][2] == {" ": -0.5}


async def test_control_tokens_do_not_move_the_offsets(stack):
    stack.engine.script = lambda _: Script(texts=("a<|im_start|>b",))
    answer = await post(stack, TEXT, {"prompt": "x", "logprobs": 0})
    lists = answer.json()["choices"][0]["logprobs"]
    assert lists["tokens"] == ["a", "<|im_start|>", "b"]
    assert lists["text_offset"] == [0, 1, 1]


async def test_a_stream_gives_the_same(stack):
    body = {
        "prompt": ["a", "b"],
        "echo": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with serve(stack), httpx.AsyncClient(base_url=stack.url) as client:
        answer = await client.post(TEXT, json=body)
    *blocks, done = [block for block in answer.text.split("\n\n") if block]
    assert done == "data: [DONE]"
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks]
    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        assert chunk["usage"] is None
        assert chunk["object"] == "text_completion"
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "aé ok", 1: "bé ok"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 10


async def test_the_official_client(stack):
    async with (
        serve(stack),
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as client,
    ):
        stream = await client.completions.create(
            model=MODEL, prompt="x", logprobs=2, stream=True, stop=["q"]
        )
        offsets: list[int] = []
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].text
            if chunk.choices[0].logprobs:
                offsets += chunk.choices[0].logprobs.text_offset or []
    assert text == "é ok"
    assert offsets == [0, 1, 1, 2, 3]
