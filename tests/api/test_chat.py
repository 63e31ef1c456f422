"""Whole chat answers and what reaches the engine."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from server.core.events import FinishReason
from tests.api.asking import post
from tests.fakes import FakeEngine, Script
from tests.serving import MODEL, Stack, serve

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
HI: Any = [{"role": "user", "content": "hi"}]


async def ask(stack, **fields):
    answer = await post(stack, CHAT, {"model": MODEL, "messages": HI, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def prompt_of(stack, number=0):
    return stack.engine.tokenizer.decode(
        stack.engine.requests[number].prompt, special=True
    ).decode()


async def test_the_form_of_an_answer(stack):
    document = (await ask(stack)).json()
    assert document["id"].startswith("chatcmpl-")
    assert document["object"] == "chat.completion"
    assert document["model"] == MODEL
    assert document["system_fingerprint"] == "fp_0123456789"
    assert document["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello world!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt = len(stack.engine.requests[0].prompt)
    assert document["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 5,
        "total_tokens": prompt + 5,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_headers(stack):
    answer = await post(stack, CHAT, {"messages": HI}, **{"x-request-id": "my-id.1"})
    assert answer.headers["x-request-id"] == "my-id.1"
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert "x-ignored-fields" not in answer.headers
    for bad in ("a b", "x" * 129, "", "-a", "a;b"):
        answer = await post(stack, CHAT, {"messages": HI}, **{"x-request-id": bad})
        assert answer.headers["x-request-id"].startswith("req_")


async def test_an_alias_and_no_name_at_all_reach_the_model(stack):
    for name in ("alias", None):
        assert (await ask(stack, model=name)).json()["model"] == MODEL


async def test_sampling_reaches_the_engine_under_llama_servers_names(stack):
    given = {
        "temperature": 0.3,
        "top_p": 0.8,
        "top_k": 40,
        "min_p": 0.05,
        "typical_p": 0.9,
        "top_n_sigma": 1.5,
        "xtc_probability": 0.1,
        "xtc_threshold": 0.2,
        "dynatemp_range": 0.1,
        "dynatemp_exponent": 1.1,
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "dry_multiplier": 0.8,
        "dry_base": 1.5,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 10,
        "mirostat": 2,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.2,
    }
    await ask(
        stack,
        **given,
        seed=0,
        logit_bias={"7": -100, "8": 2.5},
        dry_sequence_breakers=["\n"],
        ignore_eos=True,
        cache_prompt=False,
        stop="END",
        max_completion_tokens=9,
    )
    request = stack.engine.requests[0]
    for name, value in given.items():
        assert getattr(request.sampling, name) == value, name
    assert request.sampling.seed == 0
    assert request.sampling.logit_bias == {7: -100, 8: 2.5}
    assert request.sampling.dry_sequence_breakers == ("\n",)
    assert (request.ignore_eos, request.reuse_prefix) == (True, False)
    assert (request.stop, request.max_tokens) == (("END",), 9)


async def test_nulls_are_absent_and_minus_one_draws_a_seed(stack):
    nulls = ("temperature", "top_p", "n", "stop", "seed", "logit_bias", "tools", "stream", "stop")
    await ask(stack, **dict.fromkeys(nulls), max_tokens=None, stream_options=None, logprobs=None)
    await ask(stack, seed=-1, top_k=-1)
    first, second = stack.engine.requests
    assert first.sampling.temperature == 1.0
    assert first.sampling.seed is None
    assert first.max_tokens == 64
    assert second.sampling.seed is None
    assert second.sampling.top_k == 0


async def test_messages_become_what_templates_know(stack):
    messages = [
        {"role": "developer", "content": "brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"x": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    await ask(stack, messages=messages, tools=[tool], tool_choice="auto")
    assert prompt_of(stack) == (
        '<|im_start|>system\n<tools>{"type": "function", "function": {"name": "f", "parameters": '
        "{}}}</tools><|im_end|>\n"
        "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
        "<|im_end|>\n<|im_start|>user\n<tool_response>42</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    await ask(stack, tools=[tool], tool_choice="none", parallel_tool_calls=False)
    assert "<tools>" not in prompt_of(stack, 1)


@pytest.mark.parametrize(
    "fields", [{"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}]
)
async def test_thinking_can_be_switched_off(stack, fields):
    await ask(stack, **fields)
    assert prompt_of(stack).endswith("assistant\n<think>\n\n</think>\n\n")


async def test_choices_and_log_probabilities():
    stack = Stack(engine=FakeEngine(script=lambda _: Script(texts=("é", "!"), cached=3)))
    document = (await ask(stack, n=2, logprobs=True, top_logprobs=1)).json()
    assert [choice["index"] for choice in document["choices"]] == [0, 1]
    content = document["choices"][1]["logprobs"]["content"]
    assert content[2] == {
        "token": "!",
        "logprob": -0.5,
        "bytes": [33],
        "top_logprobs": [{"token": "!", "logprob": -0.5, "bytes": [33]}],
    }
    assert content[0]["bytes"] == list("é".encode()[:1])
    assert document["usage"]["completion_tokens"] == 10
    assert document["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    without = (await ask(stack, logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert without[0]["top_logprobs"] == []


async def test_length_and_reasoning_are_told():
    texts = ("<think>", "hm", "</think>", "ok")
    script = Script(texts=texts, reason=FinishReason.LENGTH)
    stack = Stack(engine=FakeEngine(script=lambda _: script))
    document = (await ask(stack)).json()
    assert document["choices"][0]["finish_reason"] == "length"
    message = document["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "ok")
    assert document["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


async def test_the_official_client_reads_choices_and_log_probabilities():
    async with (
        serve(Stack()) as stack,
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model=MODEL, messages=HI, n=2, logprobs=True, top_logprobs=2, stream=True
        )
        texts, tokens, finished = {0: "", 1: ""}, {0: "", 1: ""}, []
        async for chunk in stream:
            choice = chunk.choices[0]
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs:
                tokens[choice.index] += "".join(t.token for t in choice.logprobs.content or ())
            if choice.finish_reason:
                finished.append(choice.index)
    assert texts == tokens == {0: "Hello world!", 1: "Hello world!"}
    assert sorted(finished) == [0, 1]


async def test_seed_zero_is_given_to_the_first_choice(stack):
    await ask(stack, seed=0, n=2)
    assert [request.sampling.seed for request in stack.engine.requests] == [0, 1]
    await ask(stack, seed=-5)
    assert stack.engine.requests[2].sampling.seed == 2**32 - 5
