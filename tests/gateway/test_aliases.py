"""Names that stand for others: who gets which, and who may."""

from __future__ import annotations

from collections import Counter

import pytest

from server.core.errors import ModelNotAllowed, ModelNotFound
from server.gateway.agent import Agent
from server.gateway.aliases import Alias, conversation_of
from server.gateway.principal import Principal
from server.gateway.routing import Routes
from server.gateway.spec import ChatPrompt, GenerationSpec, TextPrompt, TokenPrompt
from server.store.keys import KeyLimits
from tests.serving import MODEL, Stack

SPLIT = Alias("gpt", (("a", 90.0), ("b", 10.0)))


def key(*models: str, name: str = "k") -> Principal:
    return Principal(name, limits=KeyLimits(models=models or None))


def chat(*texts: str, model: str = "gpt", who: Principal | None = None) -> GenerationSpec:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    prompt = ChatPrompt([{"role": "system", "content": f"{len(texts)} o'clock"}, *messages])
    return GenerationSpec("id", model, (prompt,), principal=who or Principal())


@pytest.fixture
def router():
    made = Stack(agents=(Agent(("a",), n_ctx=400), Agent(("b",), n_ctx=300)))
    made.service.shutdown()
    made.service.router.routes = Routes({"gpt": SPLIT, "plain": Alias("plain", (("b", 1.0),))})
    return made.service.router


def test_weights_are_shares_of_conversations():
    drawn = Counter(SPLIT.choose(("a", "b"), b"%d" % i) for i in range(10_000))
    assert 9_000 - 150 < drawn["a"] < 9_000 + 150
    none = Alias("x", (("a", 0.0), ("b", 1.0)))
    assert none.choose(("a", "b"), b"") == "b"
    assert none.choose(("a",), b"") is None


def test_a_target_without_weight_is_nobodys(router):
    router.routes = Routes({"gpt": Alias("gpt", (("a", 1.0), ("b", 0.0)))})
    assert [one.agent.name for _, got in router.aliases(Principal()) for one in got] == ["a"]
    assert router.aliases(key("b")) == [], "what it would be refused is not listed"


def test_moving_weight_moves_nobody_back():
    later = Alias("gpt", (("a", 60.0), ("b", 40.0)))
    both = [
        (SPLIT.choose(("a", "b"), b"%d" % i), later.choose(("a", "b"), b"%d" % i))
        for i in range(2_000)
    ]
    assert set(both) == {("a", "a"), ("a", "b"), ("b", "b")}


def test_a_conversation_keeps_its_model_over_its_turns(router):
    def model(*texts, who=None):
        spec = chat(*texts, who=who)
        return router.pick("gpt", spec.principal, spec).agent.name

    first = [model(f"question {i}") for i in range(100)]
    assert set(first) == {"a", "b"}
    later = [model(f"question {i}", "answer", "more", "answer", "go on") for i in range(100)]
    assert later == first
    others = [model(f"question {i}", who=key(name="other")) for i in range(100)]
    assert others != first, "two keys' equal questions must not always meet the same model"


def test_what_tells_conversations_apart_in_legacy_prompts():
    def of(prompt):
        return conversation_of(GenerationSpec("id", None, (prompt,)))

    assert of(TextPrompt("x" * 200)) == of(TextPrompt("x" * 300))
    assert of(TextPrompt("x")) != of(TextPrompt("y"))
    assert of(TokenPrompt([1, 2])) != of(TokenPrompt([1, 3]))
    assert of(TextPrompt("\ud800"))


@pytest.mark.parametrize(
    ("models", "asked", "got"),
    [
        ((), "plain", {"b"}),
        ((), "gpt", {"a", "b"}),
        # Who may use the alias may use what it stands for, by that name and by no other.
        (("gpt",), "gpt", {"a", "b"}),
        (("gpt",), "b", None),
        (("plain",), "gpt", None),
        # Who may use a target gets that one alone by the alias.
        (("b",), "gpt", {"b"}),
        (("b",), "plain", {"b"}),
        (("a",), "plain", None),
        ((MODEL,), "gpt", None),
    ],
)
def test_keys_limited_to_models(router, models, asked, got):
    who = key(*models)

    def draw() -> set[str]:
        specs = [chat(f"{i}", model=asked, who=who) for i in range(100)]
        return {router.pick(asked, who, spec).agent.name for spec in specs}

    listed = {alias.name for alias, _ in router.aliases(who)}
    if got is None:
        with pytest.raises(ModelNotAllowed, match=repr(asked)):
            draw()
    else:
        assert draw() == got
    assert (asked in listed) == (got is not None)


def test_a_key_sees_its_limits_behind_an_alias(router):
    who = Principal("k", limits=KeyLimits(max_context=100))
    assert router.pick("gpt", who).agent.n_ctx == 100


def test_an_alias_is_among_the_names_that_are_proposed(router):
    with pytest.raises(ModelNotFound, match="did you mean 'plain'"):
        router.pick("plane")


def test_routes_are_replaced_as_a_whole(router):
    router.routes = Routes({"new": Alias("new", (("a", 1.0),))})
    assert router.pick("new").agent.name == "a"
    with pytest.raises(ModelNotFound):
        router.pick("gpt")
