"""From a request to what a remote is asked: the body passed through, within everybody's limits."""

from __future__ import annotations

from typing import Any

from server.core.errors import ContextLengthExceeded, InvalidRequest
from server.gateway.agent import Agent
from server.gateway.entitlement import cost, standing
from server.gateway.remote.call import RemoteCall, tokens_in
from server.gateway.remote.generation import RemoteGeneration
from server.gateway.remote.model import Distant
from server.gateway.service import GenerationService
from server.gateway.spec import Forward, GenerationSpec

_MOST_CHOICES = 128
_UNKNOWN_OUTPUT = 2048
"""Tokens taken off a key's limits for an answer whose length nobody limits; the rest is owed."""
_SHARED = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
"""Sampling that every remote knows by these names."""


def ask(target: Distant, spec: GenerationSpec, service: GenerationService) -> RemoteGeneration:
    """Start `spec` on a remote; the caller must `close()` what is returned.

    Raises `InvalidRequest`, `ContextLengthExceeded`, `RateLimited`, `RemoteFailed`, `QueueFull`,
    `DeadlineUnreachable`, `Draining`. Everything else is told by what is returned.
    """
    call = _call(target, spec)
    if (failure := target.remote.failure()) is not None:
        raise failure
    grant = service.take(spec.principal)
    deadline = None if spec.seconds is None else service.clock.monotonic() + spec.seconds
    try:
        ticket = target.remote.lane.admit(
            1, standing(spec.principal), deadline=deadline, cost=cost(0, call.max_tokens)
        )
    except BaseException:
        grant.release()
        raise
    times = service.patience(target.agent, spec)
    generation = RemoteGeneration(target.remote, call, ticket, grant, times, service.clock)
    try:
        generation.begin()
    except BaseException:
        generation.close()
        raise
    return generation


def _call(target: Distant, spec: GenerationSpec) -> RemoteCall:
    agent, limits, forward = target.agent, target.remote.limits, spec.forward
    if forward is None:
        raise InvalidRequest(
            f"The model {agent.name!r} is on another server, which this endpoint does not reach.",
            param="model",
        )
    agent.check_output(spec.max_tokens)
    choices = spec.n * len(spec.prompts)
    if choices > _MOST_CHOICES:
        raise InvalidRequest(f"At most {_MOST_CHOICES} choices in one request.", param="n")
    body = _body(agent, forward)
    body["model"] = limits.model
    caps = [one for one in (limits.max_tokens, agent.max_tokens) if one is not None]
    if spec.max_tokens is None and caps:
        body["max_tokens"] = min(caps)
    output = spec.max_tokens or min(caps, default=_UNKNOWN_OUTPUT)
    prompt = sum(tokens_in(body.get(name)) for name in ("messages", "prompt", "tools"))
    if prompt + (spec.max_tokens or 1) > agent.n_ctx:
        raise ContextLengthExceeded(
            prompt_tokens=prompt,
            max_tokens=spec.max_tokens,
            n_ctx=agent.n_ctx,
            param="messages" if "messages" in body else "prompt",
        )
    return RemoteCall(forward.path, body, choices, prompt, output * choices)


def _body(agent: Agent, forward: Forward) -> dict[str, Any]:
    """Return the client's body without nulls, with what the agent adds.

    A stream is asked for even where the client wants none: what is silent can be told from what is long.
    """
    body = {name: value for name, value in forward.document().items() if value is not None}
    if "messages" in body:
        body["messages"] = agent.compose(body["messages"])
        if agent.tools and "tools" not in body:
            body["tools"] = agent.tools
    for name in _SHARED:
        if agent.sampling.get(name) is not None:
            body.setdefault(name, agent.sampling[name])
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    return body
