"""What a user may write where a model is asked for: a path, a catalogue name, or a hub repository.

| written | kind |
|---|---|
| `models/demo.gguf`, `./m.gguf`, `/srv/m.gguf`, `~/m.gguf` | file |
| `qwen3:32b`, `qwen3:32b-q4_k_m` | catalogue |
| `hf:owner/repo`, `hf:owner/repo:Q4_K_M`, `hf:owner/repo@revision:Q4_K_M` | hub |
| `hf:owner/repo/folder/file.gguf` | hub, one file |
| `hf.co/owner/repo:Q4_K_M`, `https://huggingface.co/owner/repo` | hub, as others write it |
| `https://huggingface.co/owner/repo/resolve/main/file.gguf` | hub, one file |
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from server.core.errors import ConfigError

QUANT = r"(?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)"
"""A quantization's name in capitals, as llama.cpp and the publishers of GGUFs write it."""

_HUB_PREFIXES = ("hf:", "hf.co/", "huggingface.co/", "https://hf.co/", "https://huggingface.co/")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})"
    r"(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._-]*)|/(?:resolve|blob)/(?P<from_url>[^/:]+)(?=/))?"
    r"(?:/(?P<file>[^:]+\.(?i:gguf))|:(?P<quant>[A-Za-z0-9_.-]+))?",
)
_COMMON_QUANTS = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "BF16", "F16"),
)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One model as somebody named it. Only the fields of its kind are set."""

    kind: Literal["file", "catalogue", "hub"]
    text: str
    """As it was written; for the catalogue, the name without the quantization."""
    path: Path | None = None
    repo: str | None = None
    """`owner/name` on the hub."""
    quant: str | None = None
    """In capitals; None leaves the choice to the planner."""
    file: str | None = None
    """Path in the repository, where one file is asked for."""
    revision: str | None = None
    """Branch, tag or commit; None is the repository's main branch."""

    def __str__(self) -> str:
        """Return the shortest text that means this model again."""
        if self.kind == "file":
            return str(self.path)
        if self.kind == "catalogue":
            return self.text if self.quant is None else f"{self.text}-{self.quant.lower()}"
        at = f"@{self.revision}" if self.revision else ""
        tail = f"/{self.file}" if self.file else f":{self.quant}" if self.quant else ""
        return f"hf:{self.repo}{at}{tail}"


def parse_reference(text: str, *, known: Collection[str]) -> ModelRef:
    """Understand `text`; `known` are the catalogue's names.

    Raises `ConfigError` that names the nearest catalogue name, or shows the form of a hub reference.
    """
    text = text.strip()
    if not text:
        raise ConfigError("The model's name is empty. Give a path, a name, or hf:owner/repo.")
    for prefix in _HUB_PREFIXES:
        if text.lower().startswith(prefix):
            return _hub_reference(text, text[len(prefix) :])
    if re.match(r"[a-z]+://", text, re.IGNORECASE):
        raise not_on_the_hub(text)
    catalogue = _catalogue_reference(text, known)
    if catalogue is not None:
        return catalogue
    if _looks_like_a_path(text):
        return ModelRef("file", text, path=Path(text).expanduser())
    raise ConfigError(_unknown(text, known))


def is_hub_reference(text: str) -> bool:
    """Tell whether `text` is a hub reference by its beginning."""
    return text.lower().startswith(_HUB_PREFIXES)


def not_on_the_hub(text: str) -> ConfigError:
    """Return the error for weights at an address of another server."""
    return ConfigError(
        f"{text} is not on the hub, which gives checksums for what it sends. Download it "
        "yourself and give the file's path."
    )


def quant_name(text: str) -> str | None:
    """Return `text` as a quantization's name in capitals, None when it is none."""
    upper = text.upper()
    return canonical_quant(upper) if re.fullmatch(QUANT, upper) else None


def canonical_quant(quant: str) -> str:
    """One spelling for what publishers write in several: FP16 is F16."""
    return {"FP16": "F16", "FP32": "F32"}.get(quant.upper(), quant.upper())


def nearest(text: str, choices: Collection[str]) -> str:
    """Return `; did you mean X?` for the nearest choice, else an empty text."""
    near = difflib.get_close_matches(text.lower(), [c.lower() for c in choices], n=1, cutoff=0.5)
    found = [choice for choice in choices if near and choice.lower() == near[0]]
    return f"; did you mean {found[0]}?" if found else ""


def hub_hint(ref: ModelRef) -> str:
    """Return the hub reference that a path without a file may have been meant for, else nothing."""
    meant = ref.kind == "file" and re.fullmatch(rf"{_NAME}/{_NAME}(:[A-Za-z0-9_-]+)?", ref.text)
    return f" For the repository on the hub write hf:{ref.text}" if meant else ""


def _hub_reference(text: str, rest: str) -> ModelRef:
    if text.lower().startswith("https://"):
        rest = unquote(rest.partition("?")[0])  # as a browser's address line has it
    rest = rest.rstrip("/")
    match = _HUB.fullmatch(rest)
    if match is None or ".." in rest:
        raise ConfigError(
            f"{text} is not a hub reference. Write hf:owner/repo, hf:owner/repo:Q4_K_M or "
            "hf:owner/repo/file.gguf."
        )
    quant = match["quant"]
    return ModelRef(
        "hub",
        text,
        repo=match["repo"],
        quant=canonical_quant(quant) if quant else None,
        file=match["file"],
        revision=match["revision"] or (None if match["from_url"] == "main" else match["from_url"]),
    )


def _catalogue_reference(text: str, known: Collection[str]) -> ModelRef | None:
    """Match `name`, `name-quantization` or, where the name has no tag, `name:quantization`."""
    lower = text.lower()
    if lower in known:
        return ModelRef("catalogue", lower)
    # Longest first: phi-3-mini before phi-3.
    for name in sorted(known, key=len, reverse=True):
        separators = ("-",) if ":" in name else ("-", ":")
        for separator in separators:
            head, quant = f"{name}{separator}", quant_name(lower[len(name) + 1 :])
            if lower.startswith(head) and quant is not None:
                return ModelRef("catalogue", name, quant=quant)
    return None


def _looks_like_a_path(text: str) -> bool:
    return (
        text.lower().endswith(".gguf")
        or text.startswith(("/", "./", "../", "~"))
        or "/" in text
        or Path(text).exists()
    )


def _unknown(text: str, known: Collection[str]) -> str:
    choices = [*known, *(f"{name}-{quant.lower()}" for name in known for quant in _COMMON_QUANTS)]
    hint = nearest(text, choices)
    if hint:
        return f"The catalogue has no model {text}{hint}"
    return (
        f"The catalogue has no model {text}. It has {', '.join(sorted(known))}. "
        "Other models: hf:owner/repo[:quantization], or the path of a GGUF file."
    )
