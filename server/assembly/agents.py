"""A served name as the gateway knows it: the Modelfile's words in the agent's fields."""

from __future__ import annotations

from server.assembly.wanted import Wanted
from server.catalog.modelfile import Modelfile
from server.gateway.agent import Agent


def agent_of(wanted: Wanted, host_n_ctx: int) -> Agent:
    """Return the agent of a name on a context of `host_n_ctx` tokens per request."""
    own = wanted.n_ctx
    n_ctx = host_n_ctx if own == "auto" else min(own, host_n_ctx)
    modelfile = wanted.modelfile
    if modelfile is None:
        return Agent(
            names=(wanted.name,),
            n_ctx=n_ctx,
            default_max_tokens=wanted.max_tokens or wanted.engine.default_max_tokens,
        )
    return Agent(
        names=(wanted.name,),
        n_ctx=n_ctx,
        default_max_tokens=_default_output(wanted, modelfile),
        max_tokens=modelfile.max_tokens,
        system=modelfile.system or None,
        messages=modelfile.messages,
        tools=modelfile.tools,
        sampling=modelfile.sampling,
        stop=modelfile.stop,
        overflow=modelfile.overflow,
        pin=wanted.pin,
        total_timeout=modelfile.timeout,
        description=f"Modelfile {modelfile.origin}, FROM {modelfile.base}",
    )


def _default_output(wanted: Wanted, modelfile: Modelfile) -> int:
    """Most tokens of an answer to a request that names no limit; never over the agent's own."""
    default = wanted.max_tokens or modelfile.max_tokens or wanted.engine.default_max_tokens
    return min(default, modelfile.max_tokens or default)
