"""What a sampled token means for its sequence: text, perhaps the end."""

from __future__ import annotations

from collections.abc import Container

from server.core.errors import GenerationFailed, OnegpuError
from server.core.events import Delta, FinishReason
from server.engine.plan import Sample
from server.engine.sequence import Sequence

Taken = tuple[Delta, FinishReason | None]


def take(sequence: Sequence, sample: Sample, eog: Container[int]) -> Taken | OnegpuError:
    """Add one sampled token; return what to tell, and the reason if that is the last. Or what goes wrong."""
    if sample.error is not None:
        return sample.error
    token, request, detokenizer = sample.token, sequence.request, sequence.detokenizer
    if token in eog and not request.ignore_eos:
        return Delta(detokenizer.flush(), ()), FinishReason.STOP
    sequence.tokens.append(token)
    try:
        text = detokenizer.push(token)
    except Exception as error:  # noqa: BLE001 - the neighbours go on
        return GenerationFailed(f"Token {token} could not be turned into text: {error}")
    logprobs = (sample.logprobs,) if sample.logprobs is not None else ()
    if detokenizer.match is not None:
        return Delta(text, (token,), logprobs), FinishReason.STOP
    if len(sequence.tokens) - sequence.prompt_length < request.max_tokens:
        return Delta(text, (token,), logprobs), None
    text += detokenizer.flush()
    stopped = detokenizer.match is not None
    return Delta(text, (token,), logprobs), FinishReason.STOP if stopped else FinishReason.LENGTH
