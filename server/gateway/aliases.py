"""Names that stand for other names: for one, or for several by weight while a model is replaced."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b

from server.gateway.spec import ChatPrompt, GenerationSpec, Prompt, TextPrompt

_BEGINNING = 200
"""Characters, or token ids, of a legacy prompt that tell conversations apart: it grows at its end."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A name and what it stands for."""

    name: str
    targets: tuple[tuple[str, float], ...]
    """Names with their weights, in the order of the configuration."""

    def choose(self, usable: Collection[str], conversation: bytes) -> str | None:
        """Return one of the `usable` targets by weight; None where there is none.

        The same conversation always gets the same one. Of two targets whose weights add up to the
        same, moving weight to the second moves no conversation back to the first.
        """
        targets = [(name, weight) for name, weight in self.targets if name in usable and weight]
        digest = blake2b(conversation, digest_size=8, key=self.name.encode()[:64]).digest()
        left = int.from_bytes(digest) / 2**64 * sum(weight for _, weight in targets)
        for name, weight in targets:
            left -= weight
            if left < 0:
                return name
        return targets[-1][0] if targets else None


def conversation_of(spec: GenerationSpec) -> bytes:
    """Return what stays the same over all turns of a conversation: its key and how it begins.

    For a chat that is the first user message. System prompts are left out: they may tell the time.
    """
    beginning = _beginning(spec.prompts[0]) if spec.prompts else ""
    return f"{spec.principal.key_id}\0{beginning}".encode("utf-8", "surrogatepass")


def _beginning(prompt: Prompt) -> str:
    if isinstance(prompt, ChatPrompt):
        first = next((one for one in prompt.messages if one["role"] == "user"), None)
        return str((first or prompt.messages[0])["content"]) if prompt.messages else ""
    if isinstance(prompt, TextPrompt):
        return prompt.text[:_BEGINNING]
    return repr(list(prompt.tokens[:_BEGINNING]))
