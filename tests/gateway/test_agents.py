"""Names, and what an agent adds to a request."""

from __future__ import annotations

import pytest

from server.core.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from server.gateway.agent import Agent
from server.gateway.routing import ModelRouter, Served
from server.gateway.spec import ChatPrompt, GenerationSpec, TextPrompt
from tests.fakes import FakeEngine
from tests.serving import MODEL, Stack

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "own"}
TURNS = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
TOOL = {"type": "function", "function": {"name": "fetch_api_docs"}}


def agent(**fields) -> Agent:
    return Agent(("docs",), **{"n_ctx": 400, "default_max_tokens": 40} | fields)


def texts(messages) -> list[str]:
    return [message["content"] for message in messages]


def test_the_system_prompt_comes_first_and_the_requests_own_replaces_it():
    one = agent(system="be brief", messages=TURNS)
    assert texts(one.compose([USER])) == ["be brief", "q", "a", "hi"]
    assert texts(one.compose([SYSTEM, USER])) == ["own", "q", "a", "hi"]
    assert texts(one.compose([USER, SYSTEM])) == ["q", "a", "hi", "own"]
    assert texts(agent().compose([USER])) == ["hi"]


def test_defaults_count_for_what_is_left_out():
    one = agent(sampling={"temperature": 0.2, "top_k": 5}, stop=("END",))
    params = one.params({"temperature": 0.0, "seed": 3})
    assert (params.temperature, params.top_k, params.seed, params.top_p) == (0.0, 5, 3, 1.0)
    assert one.stops(("x", "END")) == ("x", "END")
    assert one.stops(("x",)) == ("x", "END")


def test_tools_are_offered_where_the_request_says_nothing_of_tools():
    one = agent(tools=(TOOL,))
    assert one.offered(None) == (TOOL,)
    assert one.offered([]) == []


def test_an_unknown_name_is_told_the_nearest():
    made = Stack(agents=(agent(),))
    made.service.shutdown()
    router = made.service.router
    assert router.pick(None).agent.name == MODEL
    assert router.pick("docs").agent.name == "docs"
    with pytest.raises(ModelNotFound, match="did you mean 'docs'"):
        router.pick("doc")
    with pytest.raises(ModelNotFound, match="serves 'fake-model', 'alias', 'docs'"):
        router.pick("gpt-17")
    one = router.default
    with pytest.raises(ValueError, match="'docs'"):
        ModelRouter([Served(agent(), one.host, one.prompter) for _ in range(2)])


@pytest.fixture
def stack():
    made = Stack(
        engine=FakeEngine(),
        agents=(
            agent(
                system="be brief",
                messages=TURNS,
                tools=(TOOL,),
                sampling={"temperature": 0.2, "seed": None},
                stop=("END",),
                max_tokens=50,
            ),
            Agent(("talk",), n_ctx=300, default_max_tokens=2000, overflow="drop_oldest"),
        ),
    )
    yield made
    made.service.shutdown()
    assert made.admission.outstanding == 0
    assert made.hosts.hosts[0].holders == 0


async def ask(stack, model, *messages, **fields):
    prompt = ChatPrompt(messages or (USER,), tools=fields.pop("tools", None))
    generation = await stack.service.open(GenerationSpec("id", model, (prompt,), **fields))
    generation.close()
    return generation, stack.engine.requests[-1]


def rendered(stack, request) -> str:
    return stack.engine.tokenizer.decode(request.prompt, special=True).decode()


async def test_a_request_carries_what_its_agent_adds(stack):
    generation, request = await ask(stack, "docs")
    text = rendered(stack, request)
    assert "fetch_api_docs" in text
    assert text.index("be brief") < text.index("<|im_start|>user\nq") < text.index("hi<|im_end|>")
    assert (request.sampling.temperature, request.sampling.seed) == (0.2, None)
    assert (request.stop, request.max_tokens) == (("END",), 40)
    assert generation.model == "docs"
    _, plain = await ask(stack, MODEL)
    assert "be brief" not in rendered(stack, plain)
    assert plain.sampling.temperature == 1.0
    _, own = await ask(stack, "docs", SYSTEM, USER, tools=[], sampling={"temperature": 0.9})
    assert "fetch_api_docs" not in rendered(stack, own)
    assert own.sampling.temperature == 0.9


async def test_an_agents_limits_are_its_own(stack):
    with pytest.raises(InvalidRequest, match="'docs' writes at most 50 tokens, not 51"):
        await ask(stack, "docs", max_tokens=51)
    with pytest.raises(ContextLengthExceeded, match="400"):
        await ask(stack, "docs", {"role": "user", "content": "x" * 390})
    await ask(stack, MODEL, {"role": "user", "content": "x" * 390}, max_tokens=51)


def talk(turns: int, size: int = 40) -> list[dict[str, str]]:
    return [
        {"role": role, "content": f"{number} " + "x" * size}
        for number in range(turns)
        for role in ("user", "assistant")
    ] + [{"role": "user", "content": "last"}]


async def test_whole_oldest_turns_are_dropped_and_counted(stack):
    generation, request = await ask(stack, "talk", SYSTEM, *talk(4), max_tokens=20)
    text = rendered(stack, request)
    assert generation.dropped_turns == 2
    assert "own" in text
    assert "1 x" not in text
    assert text.count("2 x") == 2
    assert len(request.prompt) + 20 <= 300
    short, _ = await ask(stack, "talk", USER)
    assert short.dropped_turns == 0
    # Without a limit of its own, a quarter of the context is kept for the answer.
    _, open_ended = await ask(stack, "talk", *talk(4))
    assert len(open_ended.prompt) <= 225
    assert open_ended.max_tokens == 300 - len(open_ended.prompt)


async def test_a_last_turn_that_does_not_fit_is_refused_all_the_same(stack):
    with pytest.raises(ContextLengthExceeded, match="300"):
        await ask(stack, "talk", *talk(2), {"role": "user", "content": "x" * 400})
    # It fits, though without the room that others leave for an answer.
    generation, request = await ask(stack, "talk", {"role": "user", "content": "x" * 220})
    assert generation.dropped_turns == 0
    assert request.max_tokens == 300 - len(request.prompt)


async def test_legacy_prompts_get_sampling_but_no_words(stack):
    spec = GenerationSpec("id", "docs", (TextPrompt("once upon"),))
    (await stack.service.open(spec)).close()
    request = stack.engine.requests[-1]
    assert rendered(stack, request) == "once upon"
    assert (request.sampling.temperature, request.stop) == (0.2, ("END",))
