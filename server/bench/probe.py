"""What a server takes and tells, found out with a few tiny requests before anything is measured."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from server.bench.client import Outcome, ask
from server.bench.dialogues import Question
from server.bench.driver import EXTRAS, Peer
from server.bench.texts import TOKENS_PER_WORD, Texts
from server.core.errors import OnegpuError

_PATIENCE = 120.0
"""Seconds for a tiny answer, and for a server that says that it is not ready."""


class PeerError(OnegpuError):
    """A server cannot be measured, and why."""

    code = "bench_peer"


@dataclass(frozen=True)
class Probed:
    """A server that can be measured."""

    peer: Peer
    tells_usage: bool
    tells_cached: bool

    def remarks(self) -> list[str]:
        """Say what limits the figures."""
        label, found = self.peer.label, []
        if self.peer.left_out:
            found.append(f"{label} refuses {', '.join(self.peer.left_out)}: asked without.")
        if "ignore_eos" in self.peer.left_out:
            found.append(f"{label} may end answers early: lengths differ between servers.")
        if not self.tells_usage:
            found.append(f"{label} tells no usage: chunks are counted as tokens.")
        elif not self.tells_cached:
            found.append(f"{label} does not tell cached tokens.")
        return found


async def probe(peer: Peer, told: Callable[[str], None]) -> Probed:
    """Find the request that `peer` takes. Raises `PeerError`.

    `told`: what goes on, where it takes long.
    """
    question = Question([{"role": "user", "content": "Hello, server."}], 8)
    first: Outcome | None = None
    for size in range(len(EXTRAS) + 1):
        for left_out in itertools.combinations(EXTRAS, size):
            speaking = replace(peer, left_out=left_out)
            outcome = await _once_ready(speaking, question, told)
            if outcome.good:
                return _judge(speaking, outcome)
            first = first or outcome
            if outcome.status not in (400, 422):
                raise _refusal(peer, outcome)
    if first is None:
        raise AssertionError
    raise _refusal(peer, first)


async def _once_ready(peer: Peer, question: Question, told: Callable[[str], None]) -> Outcome:
    """Ask, again while the server says that it loads or is full."""
    end = time.monotonic() + _PATIENCE
    while True:
        outcome = await ask(peer.target, peer.body(question, seed=0), _PATIENCE)
        left = end - time.monotonic()
        if outcome.status not in (429, 503) or left <= 0:
            return outcome
        told(f"{peer.label} is not ready: {outcome.message}")
        await asyncio.sleep(min(left, max(0.5, min(outcome.retry_after, 5.0))))


def _judge(peer: Peer, outcome: Outcome) -> Probed:
    if not outcome.streamed:
        raise PeerError(
            f"{peer.label} answers in one piece where a stream was asked for: a first token cannot be measured there."
        )
    if not outcome.arrivals:
        raise PeerError(f"{peer.label} streams no text with the model {peer.model}.")
    return Probed(peer, outcome.prompt_tokens is not None, outcome.cached is not None)


def _refusal(peer: Peer, outcome: Outcome) -> PeerError:
    where = f"{peer.label} (model {peer.model})"
    if outcome.status == 0:
        return PeerError(f"{where} cannot be asked: {outcome.message} ({outcome.code}).")
    hints = {
        401: " ONEGPU_KEY, or the variable that --key-from names, has the key.",
        404: " Does the URL end before /v1, and is --model the server's name for it?",
    }
    told = outcome.message.strip().rstrip(".") or "nothing more"
    return PeerError(f"{where} answered {outcome.status}: {told}.{hints.get(outcome.status, '')}")


async def tokens_per_word(probed: Probed) -> float:
    """Measure how many tokens a word of the prompts takes, so that sizes are tokens.

    A guess where the server does not count them.
    """
    if not probed.tells_usage:
        return TOKENS_PER_WORD
    texts, counts = Texts("probe"), []
    for words in (8, 208):
        content = texts.words(words, words)
        question = Question([{"role": "user", "content": content}], 1)
        outcome = await ask(probed.peer.target, probed.peer.body(question, seed=0), _PATIENCE)
        if not outcome.good or outcome.prompt_tokens is None:
            return TOKENS_PER_WORD
        counts.append(outcome.prompt_tokens)
    return max(0.5, (counts[1] - counts[0]) / 200)
