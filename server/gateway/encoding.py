"""A request's prompts as its agent has them written: composed, shortened if that is agreed, tokenized."""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.chat.overflow import drop_oldest_turns
from server.core.errors import ContextLengthExceeded
from server.gateway.agent import Messages
from server.gateway.routing import Served
from server.gateway.spec import ChatPrompt, GenerationSpec, Prompt
from server.gateway.steering import FREE, Steerer, Steering, held


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one prompt."""

    tokens: list[int]
    dropped_turns: int = 0
    """Oldest turns that were left out."""
    public: int = 0
    """So many of its first tokens are the agent's own words."""
    steering: Steering = FREE
    """What the answer is held to."""


def encode(served: Served, spec: GenerationSpec) -> list[Encoded]:
    """Encode every prompt of `spec`. For a worker thread. Raises as `Prompter.encode` does."""
    texts = not any(isinstance(prompt, ChatPrompt) for prompt in spec.prompts)
    steering = FREE
    if texts and spec.output is not None:
        # Once for all of them: a schema may take longer to read than they do.
        steering = held(spec.output, served.prompter.tokenizer, served.prompter.written)
    return [
        _chat(served, spec, prompt)
        if isinstance(prompt, ChatPrompt)
        else replace(_encode(served, prompt, spec.max_tokens), steering=steering)
        for prompt in spec.prompts
    ]


def compose(served: Served, prompt: ChatPrompt) -> ChatPrompt:
    """Return `prompt` with what its agent adds."""
    agent = served.agent
    messages = agent.compose(prompt.messages)
    return replace(prompt, messages=messages, tools=agent.offered(prompt.tools))


def _chat(served: Served, spec: GenerationSpec, prompt: ChatPrompt) -> Encoded:
    prompter = served.prompter
    steerer = Steerer(
        spec,
        prompt,
        served.agent.offered(prompt.tools),
        prompter.template,
        prompter.tokenizer,
        prompter.written,
    )
    # Before the prompt: what cannot be enforced is told whatever the messages are like.
    constraint = steerer.constraint()
    prompt = replace(prompt, template_kwargs=steerer.kwargs())
    encoded = _encode(served, prompt, spec.max_tokens)
    public = prompter.public.count(served.agent, prompt, encoded.tokens)
    return replace(encoded, public=public, steering=steerer.steer(encoded.tokens, constraint))


def _encode(served: Served, prompt: Prompt, max_tokens: int | None) -> Encoded:
    n_ctx = served.agent.n_ctx
    if not isinstance(prompt, ChatPrompt):
        return Encoded(served.prompter.encode(prompt, n_ctx))
    try:
        tokens = served.prompter.encode(compose(served, prompt), n_ctx)
    except ContextLengthExceeded:
        if served.agent.overflow == "refuse":
            raise
        tokens = None
    room = n_ctx - served.agent.reserve(max_tokens)
    if tokens is not None and (served.agent.overflow == "refuse" or len(tokens) <= room):
        return Encoded(tokens)
    return _shortened(served, prompt, tokens, room)


def _shortened(served: Served, prompt: ChatPrompt, tokens: list[int] | None, room: int) -> Encoded:
    """Drop oldest turns until `room` tokens hold the prompt.

    What cannot be shortened that far is left whole, and refused if it does not fit at all.
    """
    n_ctx = served.agent.n_ctx

    def encoded(messages: Messages) -> list[int]:
        return served.prompter.encode(compose(served, replace(prompt, messages=messages)), n_ctx)

    def fits(messages: Messages) -> bool:
        try:
            return len(encoded(messages)) <= room
        except ContextLengthExceeded:
            return False

    kept = drop_oldest_turns(prompt.messages, fits)
    if kept is not None:
        messages, dropped = kept
        return Encoded(encoded(messages), dropped)
    return Encoded(tokens if tokens is not None else encoded(prompt.messages))
