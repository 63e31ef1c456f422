"""What kind of file an adapter's GGUF is, by its header."""

from __future__ import annotations

from server.catalog.gguf_header import GgufHeader


def adapter_problem(header: GgufHeader, *, instead: str) -> str | None:
    """Say why `header` is not a LoRA adapter's; None when it is.

    `instead`: what to do about a whole model.
    """
    kind = header.metadata.get("general.type", "model")
    form = header.metadata.get("adapter.type", "lora")
    if kind != "adapter":
        whole = f"a whole model ({header.architecture or kind})"
        return f"{header.path} is {whole}, not a LoRA adapter: {instead}."
    return None if form == "lora" else f"{header.path} is a {form} adapter; only LoRA is supported."
