"""What a Modelfile says, as plain data: one served model, which is an agent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FOREVER = math.inf
"""`keep_alive` of a model that is never unloaded for being idle."""


@dataclass(frozen=True, slots=True)
class Modelfile:
    """One agent: weights, adapter, prompt and defaults. None or empty: the file does not say."""

    name: str | None
    """The name it is served under, from the file's name; None for text without a file."""
    origin: str
    """The file, or what stands for it in messages."""
    base: str
    """FROM: an absolute path, a catalogue name, a hub reference, or the name of another Modelfile."""
    adapter: str | None = None
    """ADAPTER: a LoRA GGUF, as an absolute path or as a URL or hub reference."""
    adapter_place: str = ""
    """Where ADAPTER stands, `file:line:column`, for messages."""
    adapter_scale: float = 1.0
    draft: str | None = None
    """DRAFT: a draft model, named as `base` is, but never by a Modelfile."""
    draft_place: str = ""
    """Where DRAFT stands, for messages."""
    system: str | None = None
    """SYSTEM; empty text is a prompt that was taken away on purpose."""
    template: str | None = None
    """TEMPLATE as Jinja source, converted if it was written in Go's syntax."""
    messages: tuple[Mapping[str, str], ...] = ()
    """MESSAGE: `role` and `content` of turns that stand before every chat."""
    license: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    """TOOLS: OpenAI tool definitions, validated."""
    n_ctx: int | None = None
    """num_ctx: most tokens of prompt and answer together."""
    n_gpu_layers: int | Literal["all"] | None = None
    """num_gpu: layers, the output head counted as one. None: automatic."""
    max_tokens: int | None = None
    """num_predict: most tokens of an answer. None: the server's default."""
    timeout: float | None = None
    """Seconds that a whole answer may take."""
    stop: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Values by the field names of `SamplingParams`; only those that the file sets."""
    overflow: Literal["refuse", "drop_oldest"] = "refuse"
    """What becomes of a chat that does not fit `n_ctx`."""
    pin: bool = False
    """Whether its prompt is computed ahead and kept."""
    keep_alive: float | None = None
    """Seconds that idle weights stay loaded; 0 unloads at once, `FOREVER` never does."""
    warnings: tuple[str, ...] = ()
    """What the file asks for and does not get, or gets otherwise than it may seem: for people."""
    given: frozenset[str] = frozenset()
    """The fields above that the file itself sets, also where it sets them to their default."""
