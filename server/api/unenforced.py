"""What requests may say and nothing enforces yet."""

from __future__ import annotations

from server.api.schemas.output import top
from server.core.errors import InvalidRequest
from server.gateway.spec import ChatPrompt, GenerationSpec


def refuse_unenforced(spec: GenerationSpec) -> None:
    """Raise `InvalidRequest` rather than answer in another form than the one asked for."""
    if spec.output is not None:
        name = top(spec.output.param)
        raise InvalidRequest(
            f"{name!r} cannot be enforced yet: constrained output is not available.", param=name
        )
    if spec.tool_choice.mode in ("required", "named"):
        raise InvalidRequest(
            '\'tool_choice\' can be "auto" or "none": calls cannot be enforced yet.',
            param="tool_choice",
        )
    shown = any(isinstance(prompt, ChatPrompt) and prompt.tools for prompt in spec.prompts)
    if shown and not spec.tool_choice.parallel:
        raise InvalidRequest(
            "'parallel_tool_calls': false cannot be enforced yet; leave it out.",
            param="parallel_tool_calls",
        )
    if spec.thinking_budget is not None:
        raise InvalidRequest(
            "A budget of reasoning cannot be enforced yet; leave it out.",
            param="thinking_token_budget",
        )
